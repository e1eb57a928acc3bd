/** What stands behind the scores of one model: a bandit's choice, a judge's words, and steps. */
import { breakable, cell, color, element, head, row, section, table, tag } from "./dom.js";
import { decimals, letter, ranking } from "./numbers.js";

const LONGEST = 160; // characters of a judge's words that stand unfolded

/** The sections of a model, of those that its answer has something for. */
export const evidence = (column, responses) => [
  ...choice(column),
  ...verdicts(column),
  ...steps(column, responses),
];

const titled = (what, model) => element("span", {}, what, " ", breakable(model));

// The choice of a bandit

const CHOICE =
  "A bandit chooses the arm that scores all responses to a prompt. The propensity is the " +
  "probability with which it drew this arm; what comes of the choice is reported under its id.";

function choice({ model, scores }) {
  const places = [...scores.keys()].filter((i) => scores[i].arm);
  if (!places.length) return [];
  const rows = places.map((i) => {
    const { arm, propensity, decision, decision_id: id = decision } = scores[i];
    const share = Number.isFinite(propensity) ? propensity.toFixed(3) : "-";
    return row(tag(i), cell(breakable(arm), "text"), cell(share), cell(element("code", {}, id ?? "-")));
  });
  const heads = [head("response"), head("arm", "text"), head("propensity"), head("decision")];
  const note = element("p", { className: "soft" }, CHOICE);
  return [section(titled("Choice of", model), note, table(`Arms of ${model}`, heads, rows))];
}

// The verdicts of a judge

function verdicts({ model, scores }) {
  const all = scores.flatMap((score, i) =>
    (score.verdicts ?? []).filter(({ shown }) => i === holder(shown, scores)));
  if (!all.length) return [];
  const orders = bothOrders(all);
  const alike = orders.filter(([first, second]) => !orderDecides(first, second));
  const agreed =
    `Each pair is shown in both orders: they agree on ${alike.length} of ${orders.length}. ` +
    "Where the first response shown wins twice, or the second one, the order decides.";
  const undecided = new Set(orders.filter((pair) => !alike.includes(pair)).flat());
  const rows = all.map((verdict) =>
    row(
      element("span", { className: "tags" }, ...verdict.shown.map(tag)),
      cell(inWords(verdict, undecided.has(verdict)), "text"),
      cell(words(verdict.text), "text"),
    ));
  const heads = [head("shown"), head("verdict", "text"), head("words of the judge", "text")];
  const note = orders.length ? [element("p", { className: "soft" }, agreed)] : [];
  const shown = table(`Verdicts of ${model}`, heads, rows);
  return [section(titled("Verdicts of", model), ...note, shown)];
}

/** The one response that a verdict is taken from: it comes with each of those that it judges. */
const holder = (shown, scores) => Math.min(...shown.filter((i) => scores[i].verdicts));

/** Verdicts on the same two responses in one order and, next, in the other. */
function bothOrders(all) {
  const waiting = new Map();
  const both = [];
  for (const verdict of all.filter(({ values }) => "better" in values)) {
    const [a, b] = verdict.shown;
    const reverse = waiting.get(`${b}-${a}`) ?? [];
    if (reverse.length) both.push([reverse.shift(), verdict]);
    else waiting.set(`${a}-${b}`, [...(waiting.get(`${a}-${b}`) ?? []), verdict]);
  }
  return both;
}

const orderDecides = (first, second) =>
  (first.values.better - 0.5) * (second.values.better - 0.5) > 0;

/** The numbers of a verdict: who wins, a ranking, or a number for each criterion. */
function inWords({ values, shown }, undecided) {
  if ("better" in values) {
    const first = values.better;
    const winner = letter(shown[first > 0.5 ? 0 : 1]);
    const share = (first > 0.5 ? first : 1 - first).toFixed(2);
    const text = first === 0.5 ? "tie" : `${winner} wins, ${share}`;
    const note = undecided ? element("small", {}, "the order decides") : null;
    return element("span", {}, text, note);
  }
  const names = Object.keys(values);
  if (shown.length > 1 && names.every((name, k) => name === letter(k))) {
    // Rank 1 is the best, and the letters are those of the places in which they were shown.
    const scores = Array(Math.max(...shown) + 1).fill(null);
    names.forEach((name, k) => { scores[shown[k]] = -values[name]; });
    return element("span", {}, ranking(scores));
  }
  const digits = decimals(Object.values(values));
  const lines = names.map((name) =>
    element("div", {}, breakable(name), ` ${+values[name].toFixed(digits)}`));
  return element("div", {}, ...lines);
}

/** A judge's words, folded where they are long. */
function words(text) {
  const made = element("span", { className: "words" }, text);
  if (text.length <= LONGEST) return made;
  const opening = element("summary", {}, `${text.slice(0, LONGEST)}…`);
  return element("details", {}, opening, made);
}

// The steps of a process reward model

function steps({ model, scores, provenance }, responses) {
  const places = [...scores.keys()].filter((i) => scores[i].steps);
  if (!places.length) return [];
  const rows = places.flatMap((i) => {
    const texts = responses[i].split(/\n[^\S\n]*\n/).filter((text) => text.trim());
    const excerpts = texts.length === scores[i].steps.length ? texts : [];
    return scores[i].steps.map((value, k) => {
      const text = element("span", { title: (excerpts[k] ?? "").slice(0, 1000) });
      text.append((excerpts[k] ?? "").trim().slice(0, LONGEST));
      const name = element("span", { className: "excerpt" }, tag(i), `${k + 1}`, text);
      return row(name, bar(value, i), cell(value === null ? "cut" : value.toFixed(3)));
    });
  });
  const rule = provenance.steps ? `The score is the ${provenance.steps}. ` : "";
  const note = "A step that limits cut has no score, and so its response has none.";
  return [
    section(
      titled("Steps of", model),
      element("p", { className: "soft" }, rule + note),
      table(`Steps of ${model}`, [head("step"), head("from 0 to 1", "plot"), head("score")], rows),
    ),
  ];
}

/** The score of a step as a bar; scores beyond 0 and 1 end there. */
function bar(value, i) {
  const share = Math.min(1, Math.max(0, value ?? 0));
  const line = element("s", { className: color(i), style: { width: `${100 * share}%` } });
  return cell(element("span", { className: "track" }, line), "plot");
}
