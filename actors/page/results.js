/** An answer of `/v1/rewards`: scores, how models agree, objectives, and why one response won. */
import { breakable, cell, column, element, row, table } from "./dom.js";
import * as numbers from "./numbers.js";

const { letter, signed } = numbers;
const MOST = 8; // objectives that stand unfolded

/**
 * Shows an answer and returns it in one sentence.
 * @param {Element} place what is replaced
 * @param {object} found the request as `asked`, its `answer`, the `models` listed, `milliseconds`
 */
export function showAnswer(place, { asked, answer, models, milliseconds }) {
  const columns = answer.results.map(({ model, items: [scores], provenance = {} }) => ({
    model,
    scores,
    provenance,
    raw: scores.map(({ score }) => score),
    listed: new Map(models.find(({ id }) => id === model)?.objectives.map((own) => [own.name, own])),
  }));
  const responses = asked.items[0].responses;
  const explained = columns.filter(({ scores }) => scores.some((own) => own.objectives ?? own.drivers));
  place.replaceChildren(
    section(
      "Scores",
      figures(columns, Math.round(milliseconds)),
      scoreTable(columns, responses),
      ...(columns.length > 1 ? agreements(columns) : []),
      ...provenances(columns),
    ),
    ...explained.map((own) => section(element("span", {}, "What moved ", breakable(own.model)),
      ...objectives(own, asked.weights), ...why(own))),
  );
  const lost = columns.flatMap(({ raw }) => raw).filter((score) => score === null).length;
  const told = `${responses.length} responses, ${columns.length} model${columns.length > 1 ? "s" : ""}, ${Math.round(milliseconds)} ms`;
  return `${told}. ${lost ? `${lost} of ${responses.length * columns.length} scores are missing.` : "All scored."}`;
}

let sections = 0;

function section(title, ...children) {
  const id = `result-${sections++}`;
  return element("section", { "aria-labelledby": id }, element("h2", { id }, title), ...children);
}

function figures(columns, milliseconds) {
  const best = columns.map(({ raw }) => bestOf(raw));
  const united = new Set(best.filter(Boolean)).size === 1;
  const tokens = columns.flatMap(({ scores }) => scores).reduce((sum, own) => sum + (own.num_tokens ?? 0), 0);
  const shown = [
    ["Best response", united ? best.find(Boolean) : best.some(Boolean) ? "split" : "-",
      united ? `of ${best.filter(Boolean).length} of ${best.length} models` : "see the marks of each model"],
  ];
  if (columns.length > 1) {
    const all = numbers.pairs(columns.length).map(([i, j]) => numbers.agreement(columns[i].raw, columns[j].raw));
    const [alike, opposite] = ["alike", "opposite"].map((name) => all.reduce((sum, own) => sum + own[name], 0));
    shown.push(["Agreement", alike + opposite ? `${alike} of ${alike + opposite}` : "-",
      "pairs of responses that two models order alike"]);
  }
  shown.push(["Latency", `${milliseconds} ms`, "from sending the request to reading the answer"]);
  shown.push(["Tokens", tokens ? tokens.toLocaleString("en") : "-", "prompt and response, over all models"]);
  return element("dl", { className: "figures" }, ...shown.map(([name, value, note]) =>
    element("div", {}, element("dt", {}, name), element("dd", { className: "value" }, value),
      element("dd", { className: "note" }, note))));
}

/** Letters of the best responses of a model, `A = B` where they tie; empty without scores. */
function bestOf(raw) {
  return numbers.ranks(raw).flatMap((rank, i) => (rank === 1 ? [letter(i)] : [])).join(" = ");
}

function scoreTable(columns, responses) {
  const rows = responses.map((text, i) => row(
    element("span", { className: "excerpt" }, tag(i), element("span", { title: text.slice(0, 1000) }, text.slice(0, 160))),
    ...columns.map((own) => scoreCell(own, i)),
  ));
  const foot = [
    row("ranking", ...columns.map(({ raw }) => cell(numbers.ranking(raw) || "-"))),
    row("tokens", ...columns.map(({ scores }) =>
      cell(scores.reduce((sum, own) => sum + (own.num_tokens ?? 0), 0).toLocaleString("en")))),
  ];
  const heads = [column("response"), ...columns.map(({ model }) => column(breakable(model), "model"))];
  return table("Raw scores; the best of each model is marked", heads, rows, foot);
}

function scoreCell({ scores, raw }, i) {
  const { score, error, transient } = scores[i];
  if (score === null) {
    return element("td", { className: "missing" }, element("b", {}, "no score"),
      element("small", {}, `${error}${transient ? "; trying again may help" : ""}`));
  }
  const rank = numbers.ranks(raw)[i];
  const shared = raw.filter((other) => other === score).length > 1;
  const given = raw.filter((other) => other !== null);
  return element("td", { className: rank === 1 ? "best" : "" },
    element("b", {}, score.toFixed(numbers.scoreDecimals(given))),
    element("small", {}, `${rank === 1 ? "best" : `rank ${rank}`}${shared ? ", tied" : ""}`));
}

function agreements(columns) {
  const rows = numbers.pairs(columns.length).map(([i, j]) => {
    const found = numbers.agreement(columns[i].raw, columns[j].raw);
    return row(
      element("span", {}, breakable(columns[i].model), " and ", breakable(columns[j].model)),
      cell(`${found.alike} of ${found.alike + found.opposite}`),
      cell(found.tau === null ? "-" : found.tau.toFixed(2)),
      cell(found.tied),
      cell(found.missing),
    );
  });
  const heads = ["models", "ordered alike", "Kendall τ-b", "tied", "missing"].map((name) => column(name));
  return [
    element("h3", {}, "Agreement"),
    element("p", { className: "soft" }, "Over pairs of responses. A pair that a model ties is neither alike nor opposite, one that lacks a score is left out; τ-b is 1 for the same order and -1 for the reverse."),
    table("Agreement of models", heads, rows),
  ];
}

function provenances(columns) {
  const told = columns.filter(({ provenance }) => Object.keys(provenance).length);
  if (!told.length) return [];
  const rows = told.flatMap(({ model, provenance }) => Object.entries(provenance).map(([name, value]) =>
    row(element("span", {}, breakable(model), ` ${name}`), element("td", { className: "text" }, element("code", {}, value)))));
  return [element("details", {}, element("summary", {}, "What scored"),
    table("Hashes of what scored", [column("model"), column("hash", "text")], rows))];
}

/** The first rows of a table, and a button for all; `draw` takes the number of rows. */
function foldable(total, draw) {
  let all = false;
  const place = element("div");
  const button = element("button", { type: "button", className: "quiet", hidden: total <= MOST });
  const redraw = () => {
    place.replaceChildren(draw(all ? total : MOST));
    button.textContent = all ? `Show the first ${MOST}` : `Show all ${total}`;
    button.setAttribute("aria-expanded", all);
  };
  button.addEventListener("click", () => { all = !all; redraw(); });
  redraw();
  return { parts: [place, button], redraw };
}

function chooser(label, options, chosen) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
  return [select, element("label", { className: "inline" }, `${label} `, select)];
}

function objectives({ model, scores, listed }, weights) {
  const names = [...new Set(scores.flatMap((own) => Object.keys(own.objectives ?? {})))];
  if (!names.length) return [];
  const added = scores.map((own) => new Map(own.drivers?.map((d) => [d.objective, d.contribution])));
  const gates = (name) => scores.flatMap((own) => (own.gate && name in own.gate ? [own.gate[name]] : []));
  const keys = {
    weight: (name) => Math.max(-Infinity, ...gates(name)),
    contribution: (name) => Math.max(-1, ...added.map((own) => Math.abs(own.get(name) ?? -1))),
  };
  const digits = {
    weight: numbers.decimals(names.flatMap(gates)),
    contribution: numbers.decimals(added.flatMap((own) => [...own.values()])),
  };
  const heaviest = Math.max(1e-9, ...names.flatMap(gates));
  const [select, order] = chooser("Sort by", [["weight", "weight"], ["contribution", "contribution"]], "weight");
  const lines = (told) => element("td", { className: "lines" }, ...told.map((text) => element("span", {}, text)));
  const line = (name) => {
    const weight = gates(name);
    const ends = [...new Set([Math.min(...weight), Math.max(...weight)].map((w) => w.toFixed(digits.weight)))];
    return row(
      breakable(name),
      element("td", { className: "weight" }, weight.length ? ends.join(" to ") : "-",
        element("span", { className: "track" }, element("s", { style: { width: `${100 * Math.max(0, ...weight) / heaviest}%` } }))),
      bars(scores.map((own) => own.objectives?.[name] ?? null), listed.get(name)),
      lines(added.map((own) => (own.has(name) ? signed(own.get(name), digits.contribution) : "-"))),
    );
  };
  const heads = [column("objective"), column(weights ? "your weight" : "gate weight", "weight"),
    column("predicted rating, on its own scale", "plot"), column("adds to the score")];
  const { parts, redraw } = foldable(names.length, (num) => {
    const first = names.toSorted((a, b) => keys[select.value](b) - keys[select.value](a)).slice(0, num);
    return table(`Objectives of ${model}`, heads, first.map(line));
  });
  select.addEventListener("change", redraw);
  return [order, ...parts];
}

const tag = (i) => element("b", { className: `tag r${Math.min(i, 4)}` }, letter(i));

function bars(values, objective) {
  const { low, high, known } = numbers.scaleOf(objective, values.filter((value) => value !== null));
  const n = numbers.decimals([low, high]);
  const ends = [low, high].map((end) => String(+end.toFixed(n)));
  const made = values.map((value, i) => {
    const share = value === null ? 0 : Math.min(1, Math.max(0, (value - low) / (high - low)));
    const beyond = value > high ? " ↑" : value < low && value !== null ? " ↓" : "";
    return element("span", { className: "line" }, tag(i),
      element("span", { className: "track" }, element("s", { className: `r${Math.min(i, 4)}`, style: { width: `${100 * share}%` } })),
      element("span", { className: "number" }, value === null ? "-" : value.toFixed(n) + beyond));
  });
  const scale = element("span", { className: "ends" }, element("span", {}, ends[0]),
    known ? null : element("i", {}, "no known scale"), element("span", {}, ends[1]));
  return element("td", { className: "plot" }, ...made, scale);
}

function why({ scores, raw, listed }) {
  const places = numbers.ordered(raw).filter((i) => scores[i].drivers);
  if (places.length < 2) return [];
  const options = places.toSorted((i, j) => i - j).map((i) => [i, letter(i)]);
  const [first, over] = chooser("Why", options, places[0]);
  const [second, than] = chooser("over", options, places[1]);
  const place = element("div");
  const redraw = () => {
    const [i, j] = [+first.value, +second.value];
    place.replaceChildren(...(i === j ? [element("p", {}, "Choose two different responses.")]
      : foldable(numbers.differences(scores[i].drivers, scores[j].drivers).length,
        (num) => drivers(i, j, scores, listed, num)).parts));
  };
  [first, second].forEach((select) => select.addEventListener("change", redraw));
  redraw();
  return [element("h3", {}, "Why one over the other"), element("div", { className: "row" }, over, than), place];
}

function drivers(i, j, scores, listed, num) {
  const found = numbers.differences(scores[i].drivers, scores[j].drivers);
  const sum = (all) => all.reduce((total, { moved }) => total + moved, 0);
  const total = scores[i].score - scores[j].score;
  const others = found.slice(num);
  const unknown = total - sum(found);
  const shown = found.slice(0, num).map((own) => [breakable(own.objective), own.moved, ...own.values.map((value) =>
    value.toFixed(numbers.decimals(listedRange(listed.get(own.objective), own.values))))]);
  if (others.length) shown.push([`${others.length} others`, sum(others), "", ""]);
  // float32 sums differ in the last digits; more than that is something no objective explains.
  if (Math.abs(unknown) > 1e-3 * Math.max(...found.map(({ moved }) => Math.abs(moved)), Math.abs(total))) {
    shown.push(["not explained by objectives", unknown, "", ""]);
  }
  const most = Math.max(1e-9, ...shown.map(([, moved]) => Math.abs(moved)));
  const n = numbers.decimals([most, total]);
  const rows = shown.map(([name, moved, a, b]) => {
    const width = (50 * Math.abs(moved)) / most;
    const bar = { left: `${moved < 0 ? 50 - width : 50}%`, width: `${width}%` };
    const track = element("span", { className: "track middle" },
      element("s", { className: `r${Math.min(moved < 0 ? j : i, 4)}`, style: bar }));
    return row(name, element("td", { className: "plot" }, track), cell(signed(moved, n)), cell(a), cell(b));
  });
  const foot = row("difference of the scores", cell("", "plot"), cell(signed(total, n)), cell(""), cell(""));
  const sides = element("span", { className: "ends" }, element("span", {}, "for ", tag(j)), element("span", {}, "for ", tag(i)));
  const heads = [column("objective"), column(sides, "plot"), column("difference"),
    column(element("span", {}, "rating ", tag(i))), column(element("span", {}, "rating ", tag(j)))];
  return table(`Contributions to ${letter(i)} less those to ${letter(j)}`, heads, rows, [foot]);
}

const listedRange = (objective, values) => Object.values(numbers.scaleOf(objective, values)).slice(0, 2);
