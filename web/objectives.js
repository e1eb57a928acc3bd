/** What moved the scores of one model: its objectives, their weights, and why one response won. */
import { breakable, cell, chooser, color, element, head, row, section, table, tag } from "./dom.js";
import { decimals, differences, letter, ordered, scaleNote, scaleOf, signed } from "./numbers.js";

const MOST = 8; // objectives that stand unfolded
/** What the parts of a score are called, by the kind of the model; title, name and number. */
const WORDS = {
  composite: ["Parts of ", "part", "score of the part"],
  judge: ["Criteria of ", "criterion", "rating by the judge"],
};
const OTHERS = ["What moved ", "objective", "predicted rating, on its own scale"];

/** The section of a model whose scores have objectives: ratings, parts or criteria. */
export function moved(column) {
  const [what] = WORDS[column.kind] ?? OTHERS;
  const title = element("span", {}, what, breakable(column.model));
  return section(title, ...objectives(column), ...why(column));
}

function objectives({ model, kind, scores, objectives: listed, steered }) {
  const [, part, number] = WORDS[kind] ?? OTHERS;
  const names = [...new Set(scores.flatMap((score) => Object.keys(score.objectives ?? {})))];
  const scales = new Map(listed.map((objective) => [objective.name, objective]));
  const weights = (name) => scores.flatMap(({ gate = {} }) => gate[name] ?? []);
  const added = scores.map(({ drivers = [] }) =>
    new Map(drivers.map(({ objective, contribution }) => [objective, contribution])));
  const contributions = added.flatMap((values) => [...values.values()]);
  const all = { weight: names.flatMap(weights), added: contributions };
  const digits = { weight: decimals(all.weight), added: decimals(all.added) };
  const heaviest = Math.max(1e-9, ...all.weight.map(Math.abs));
  const sizes = {
    weight: (name) => Math.max(-1, ...weights(name).map(Math.abs)),
    contribution: (name) => Math.max(...added.map((values) => Math.abs(values.get(name) ?? -0))),
  };

  const weightCell = (name) => {
    const shares = weights(name);
    const ends = [Math.min(...shares), Math.max(...shares)].map((x) => x.toFixed(digits.weight));
    const range = [...new Set(ends)].join(" to "); // a gate reads the prompt alone: one weight
    const bar = element("s", { style: { width: `${(100 * sizes.weight(name)) / heaviest}%` } });
    const track = element("span", { className: "track" }, bar);
    return element("td", { className: "weight" }, shares.length ? range : "-", track);
  };
  const addedCell = (name) => {
    const lines = added.map((values) =>
      (values.has(name) ? signed(values.get(name), digits.added) : "-"));
    return element("td", { className: "lines" }, ...lines.map((text) => element("span", {}, text)));
  };
  const line = (name) => {
    const values = scores.map((score) => score.objectives?.[name] ?? null);
    const predicted = values.filter((value) => value !== null);
    const scale = scaleOf(scales.get(name), predicted);
    const cells = [bars(values, scale)];
    if (all.weight.length) cells.unshift(weightCell(name));
    if (all.added.length) cells.push(addedCell(name));
    return row(noted(name, predicted, scale), ...cells);
  };

  const heads = [head(part), head(number, "plot")];
  if (all.weight.length) heads.splice(1, 0, head(steered ? "your weight" : "gate weight"));
  if (all.added.length) heads.push(head("adds to the score"));
  const place = element("div");
  const more = element("button", { type: "button", className: "quiet" });
  more.hidden = names.length <= MOST;
  const draw = (unfolded) => {
    const size = sizes[order.value];
    const first = names.toSorted((a, b) => size(b) - size(a)).slice(0, unfolded ? undefined : MOST);
    place.replaceChildren(table(`Objectives of ${model}`, heads, first.map(line)));
    more.textContent = unfolded ? `Show the first ${MOST}` : `Show all ${names.length}`;
    more.ariaExpanded = String(unfolded);
  };
  const unfolded = () => more.ariaExpanded === "true";
  const options = Object.keys(sizes).map((name) => [name, name]);
  const [order, label] = chooser("Sort by", options, "weight", () => draw(unfolded()));
  more.addEventListener("click", () => draw(!unfolded()));
  draw(false);
  return [label, place, more];
}

/** The name of an objective with what a reader has to know of its ratings. */
function noted(name, values, scale) {
  const note = scaleNote(values, scale);
  return element("span", {}, breakable(name), note ? element("small", {}, note) : null);
}

/** The ratings of all responses as bars from the low to the high end of their scale. */
function bars(values, { low, high }) {
  const digits = decimals([low, high]);
  const lines = values.map((value, i) => {
    const share = value === null ? 0 : Math.min(1, Math.max(0, (value - low) / (high - low)));
    const beyond = value > high ? " ↑" : value !== null && value < low ? " ↓" : "";
    const bar = element("s", { className: color(i), style: { width: `${100 * share}%` } });
    return element(
      "span",
      { className: "line" },
      tag(i),
      element("span", { className: "track" }, bar),
      element("span", {}, value === null ? "-" : value.toFixed(digits) + beyond),
    );
  });
  const [first, last] = [low, high].map((end) => element("span", {}, String(+end.toFixed(digits))));
  const ends = element("span", { className: "ends" }, first, last);
  return element("td", { className: "plot" }, ...lines, ends);
}

function why({ scores, raw, objectives: listed }) {
  const places = ordered(raw).filter((i) => scores[i].drivers);
  if (places.length < 2) return [];
  const scales = new Map(listed.map((objective) => [objective.name, objective]));
  const place = element("div");
  const draw = () => place.replaceChildren(drivers(+first.value, +second.value, scores, scales));
  const options = places.toSorted((i, j) => i - j).map((i) => [i, letter(i)]);
  const [first, over] = chooser("Why", options, places[0], draw);
  const [second, than] = chooser("over", options, places[1], draw);
  draw();
  const choice = element("div", { className: "row" }, over, than);
  return [element("h3", {}, "Why one over the other"), choice, place];
}

/** Contributions to response i less those to j, which add up to the difference of the scores. */
function drivers(i, j, scores, scales) {
  const moves = differences(scores[i].drivers, scores[j].drivers);
  const sum = (all) => all.reduce((total, move) => total + move.moved, 0);
  const total = scores[i].score - scores[j].score;
  const others = moves.slice(MOST);
  const unknown = total - sum(moves);
  const parts = moves.slice(0, MOST).map(({ objective, values, moved }) => {
    const scale = scaleOf(scales.get(objective), values);
    const digits = decimals([scale.low, scale.high]);
    return [noted(objective, values, scale), moved, ...values.map((v) => v.toFixed(digits))];
  });
  if (others.length) parts.push([`${others.length} others`, sum(others), "", ""]);
  const most = Math.max(1e-9, ...parts.map(([, moved]) => Math.abs(moved)));
  // float32 sums differ in their last digits; more than that is something no objective explains.
  if (Math.abs(unknown) > 1e-3 * most) parts.push(["no objective", unknown, "", ""]);
  const widest = Math.max(most, Math.abs(unknown));
  const digits = decimals([widest, total]);
  const rows = parts.map(([name, moved, ...values]) => {
    const width = (50 * Math.abs(moved)) / widest;
    const style = { left: `${moved < 0 ? 50 - width : 50}%`, width: `${width}%` };
    const bar = element("s", { className: color(moved < 0 ? j : i), style });
    const track = element("span", { className: "track middle" }, bar);
    const numbers = [signed(moved, digits), ...values];
    return row(name, cell(track, "plot"), ...numbers.map((number) => cell(number)));
  });
  const sums = ["", element("b", {}, signed(total, digits)), "", ""].map((child) => cell(child));
  const sides = [j, i].map((side) => element("span", {}, "for ", tag(side)));
  const heads = [
    head("objective"),
    head(element("span", { className: "ends" }, ...sides), "plot"),
    head("difference"),
    ...[i, j].map((side) => head(element("span", {}, "rating ", tag(side)))),
  ];
  const caption = `Contributions to ${letter(i)} less those to ${letter(j)}`;
  return table(caption, heads, rows, [row("difference of scores", ...sums)]);
}
