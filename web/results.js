/** An answer of `/v1/rewards`, shown: scores, and how the models agree. */
import { breakable, cell, element, head, row, section, table, tag } from "./dom.js";
import { evidence } from "./evidence.js";
import { agreement, letter, ordered, pairs, ranking, ranks, scoreDecimals } from "./numbers.js";
import { moved } from "./objectives.js";

/**
 * Shows an answer and returns it in a sentence.
 * @param {Element} place what is replaced
 * @param {object} shown the request as `request`, its `answer`, the `models` listed, `milliseconds`
 */
export function showAnswer(place, { request, answer, models, milliseconds }) {
  const { responses } = request.items[0];
  const columns = answer.results.map(({ model, items: [scores], provenance = {} }) => ({
    model,
    scores,
    provenance,
    raw: scores.map(({ score }) => score),
    kind: models.find(({ id }) => id === model)?.kind ?? "",
    objectives: models.find(({ id }) => id === model)?.objectives ?? [],
    steered: Boolean(request.weights),
  }));
  const latency = `${Math.round(milliseconds)} ms`;
  place.replaceChildren(
    section(
      "Scores",
      figures(columns, latency),
      scoreTable(columns, responses),
      ...(columns.length > 1 ? agreements(columns) : []),
    ),
    ...columns.flatMap((column) => [
      ...(column.scores.some((score) => score.objectives) ? [moved(column)] : []),
      ...evidence(column, responses),
    ]),
  );
  const lost = columns.flatMap(({ raw }) => raw).filter((score) => score === null).length;
  const whole = columns.length * responses.length;
  const note = lost ? `, ${lost} of ${whole} scores missing` : "";
  return `${responses.length} responses, ${plural(columns.length, "model")}, ${latency}${note}.`;
}

const plural = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;
const tokens = (scores) => scores.reduce((sum, score) => sum + (score.num_tokens ?? 0), 0);
const grouped = (count) => (count ? count.toLocaleString("en") : "-");

/** Letters of a model's best responses, `A = B` where they tie; empty without scores. */
const bestOf = (raw) =>
  ordered(raw).filter((i) => ranks(raw)[i] === 1).map(letter).join(" = ");

function figures(columns, latency) {
  const best = columns.map(({ raw }) => bestOf(raw)).filter(Boolean);
  const united = new Set(best).size === 1;
  const shown = [
    united
      ? ["Best response", best[0], `for ${best.length} of ${plural(columns.length, "model")}`]
      : ["Best response", best.length ? "split" : "-", "the models differ"],
    ["Latency", latency, "from sending to reading the answer"],
    ["Tokens", grouped(tokens(columns.flatMap(({ scores }) => scores))), "over all models"],
  ];
  if (columns.length > 1) {
    const all = pairs(columns.length).map(([i, j]) => agreement(columns[i].raw, columns[j].raw));
    const sum = (name) => all.reduce((total, column) => total + column[name], 0);
    const decided = sum("alike") + sum("opposite");
    const share = decided ? `${sum("alike")} of ${decided}` : "-";
    shown.splice(1, 0, ["Agreement", share, "pairs of responses that two models order alike"]);
  }
  const made = shown.map(([name, value, note]) =>
    element(
      "div",
      {},
      element("dt", {}, name),
      element("dd", { className: "value" }, value),
      element("dd", { className: "note" }, note),
    ),
  );
  return element("dl", { className: "figures" }, ...made);
}

function scoreTable(columns, responses) {
  const rows = responses.map((text, i) => {
    const opening = element("span", { title: text.slice(0, 1000) }, text.slice(0, 160));
    const name = element("span", { className: "excerpt" }, tag(i), opening);
    return row(name, ...columns.map((column) => scoreCell(column, i)));
  });
  const foot = [
    row("ranking", ...columns.map(({ raw }) => cell(ranking(raw) || "-"))),
    row("tokens", ...columns.map(({ scores }) => cell(grouped(tokens(scores))))),
  ];
  foot.push(...judgesCosts(columns));
  const named = { weights: "hash of weights", template: "hash of template", dtype: "computed in" };
  for (const [name, label] of Object.entries(named)) {
    const hashes = columns.map(({ provenance }) => provenance[name] ?? "-");
    if (hashes.every((text) => text === "-")) continue;
    const cells = hashes.map((text) => element("code", { title: text }, text.slice(0, 12)));
    foot.push(row(label, ...cells.map((code) => cell(code))));
  }
  const heads = columns.map(({ model }) => head(breakable(model), "model"));
  heads.unshift(head("response"));
  return table("Raw scores; the best of each model is marked", heads, rows, foot);
}

/** What judges were asked for this answer, and what it cost; no row where none was. */
function judgesCosts(columns) {
  const names = { calls: "judge's answers", cached: "of its cache", cost: "cost" };
  const rows = [];
  for (const [name, label] of Object.entries(names)) {
    const sums = columns.map(({ scores }) => {
      const numbers = scores.flatMap(({ usage }) => usage?.[name] ?? []);
      return numbers.length ? numbers.reduce((a, b) => a + b) : null;
    });
    if (!sums.some((sum) => sum)) continue;
    rows.push(row(label, ...sums.map((sum) => cell(sum === null ? "-" : +sum.toPrecision(4)))));
  }
  return rows;
}

function scoreCell({ scores, raw }, i) {
  const { score, error, transient, spread, num_cut: numCut } = scores[i];
  if (score === null) {
    const why = element("small", {}, error + (transient ? "; trying again may help" : ""));
    return element("td", { className: "missing" }, element("b", {}, "no score"), why);
  }
  const rank = ranks(raw)[i];
  const tied = raw.filter((other) => other === score).length > 1 ? ", tied" : "";
  const cut = numCut ? `, ${plural(numCut, "token")} cut off` : "";
  const apart = Number.isFinite(spread) ? `, members deviate by ${+spread.toPrecision(3)}` : "";
  return element(
    "td",
    { className: rank === 1 ? "best" : "" },
    element("b", {}, score.toFixed(scoreDecimals(raw.filter((other) => other !== null)))),
    element("small", {}, (rank === 1 ? "best" : `rank ${rank}`) + tied + cut + apart),
  );
}

const AGREEMENT =
  "Over pairs of responses. One that a model ties is neither alike nor opposite, one that lacks " +
  "a score is left out. τ-b is 1 for the same order and -1 for the reverse.";

function agreements(columns) {
  const rows = pairs(columns.length).map(([i, j]) => {
    const counts = agreement(columns[i].raw, columns[j].raw);
    const [first, second] = [i, j].map((k) => breakable(columns[k].model));
    return row(
      element("span", {}, first, " and ", second),
      cell(`${counts.alike} of ${counts.alike + counts.opposite}`),
      cell(counts.tau === null ? "-" : counts.tau.toFixed(2)),
      cell(counts.tied),
      cell(counts.missing),
    );
  });
  const heads = ["models", "ordered alike", "Kendall τ-b", "tied", "missing"];
  return [
    element("h3", {}, "Agreement"),
    element("p", { className: "soft" }, AGREEMENT),
    table("Agreement of models", heads.map((name) => head(name)), rows),
  ];
}
