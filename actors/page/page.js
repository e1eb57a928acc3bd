/** The form: what is asked and of whom, the key, and what went wrong. */
import { breakable, element } from "./dom.js";
import { letter } from "./numbers.js";
import { showAnswer } from "./results.js";

const API = new URL("../v1/", import.meta.url); // beside this folder, whatever the route prefix
const DETAILS = ["objectives", "gate", "drivers", "provenance"];
const FEWEST = 2;
const MOST_RESPONSES = 26; // letters

const at = (id) => document.getElementById(id);
const picked = new Set();
const steering = new Map(); // text of the weight fields, by objective
let models = null;
let key = "";
let running = null;
let afterKey = null;
let lastGates = null;

const say = (text) => { at("said").textContent = text; };

class Refused extends Error {
  constructor(response, payload) {
    const { error = payload?.detail } = payload ?? {};
    const told = error?.message ?? (typeof error === "string" ? error : JSON.stringify(error) ?? "");
    const wait = response.headers.get("retry-after");
    super(`The server refused with ${response.status}${told && `: ${told}`}${wait ? ` (it asks to wait ${wait} s)` : ""}`);
    this.status = response.status;
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  let payload;
  try {
    response = await fetch(new URL(path, API), { ...options, headers });
    payload = await response.json().catch(() => null);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
  if (!response.ok || payload === null) throw new Refused(response, payload);
  return payload;
}

/** Tells an error with `tell`; a key that is missing or wrong is asked for, and `again` called. */
function failed(error, tell, again) {
  if (error.name === "AbortError") return tell("Canceled.");
  if (error.status !== 401) return tell(error.message);
  tell("Waiting for an API key.");
  afterKey = again;
  at("locked-why").textContent = key ? "The server refused this key." : at("locked-why").textContent;
  at("key").ariaInvalid = String(Boolean(key));
  at("locked").hidden = false;
  at("key").focus();
}

at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  at("locked").hidden = true;
  (afterKey === score ? at("score") : at("turns").querySelector("textarea")).focus();
  afterKey();
});

// Turns and responses

function number(list) {
  const rows = [...list.children];
  rows.forEach((item, i) => {
    const [select, label, text] = ["select", "label", "textarea"].map((tag) => item.querySelector(tag));
    const name = label ? `Response ${letter(i)}` : `Turn ${i + 1}`;
    if (label) {
      text.id = `response-${i}`;
      label.htmlFor = text.id;
      label.replaceChildren(element("b", { className: `tag r${Math.min(i, 4)}` }, letter(i)), ` Response ${letter(i)}`);
    } else {
      select.ariaLabel = `Role of turn ${i + 1}`;
      text.ariaLabel = `Text of turn ${i + 1}`;
    }
    const remove = item.querySelector(".remove");
    remove.ariaLabel = `Remove ${name.toLowerCase().replace(/ .$/, (end) => end.toUpperCase())}`;
    remove.hidden = rows.length <= (label ? FEWEST : 1);
  });
  at("add-response").hidden = at("responses").children.length >= MOST_RESPONSES;
}

function add(list, content = "", role = null) {
  const item = at(list.id.slice(0, -1)).content.cloneNode(true).firstElementChild;
  item.querySelector("textarea").value = content;
  if (role) item.querySelector("select").value = role;
  item.querySelector(".remove").addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    number(list);
    next.querySelector("textarea").focus();
    changed();
  });
  list.append(item);
  number(list);
  return item.querySelector("textarea");
}

at("add-response").addEventListener("click", () => { add(at("responses")).focus(); changed(); });
at("add-turn").addEventListener("click", () => {
  const last = at("turns").lastElementChild.querySelector("select").value;
  add(at("turns"), "", last === "user" ? "assistant" : "user").focus();
  changed();
});

// Models and weights

async function listModels() {
  at("models-said").textContent = "Asking the server…";
  try {
    const { data } = await call("models");
    if (models === null && !picked.size) data.filter((own) => own.default).forEach((own) => picked.add(own.id));
    models = data;
    showModels();
    at("models-said").textContent = models.length ? "" : "This server has no models.";
  } catch (error) {
    failed(error, (text) => { at("models-said").textContent = text; }, listModels);
  }
}

function showModels() {
  const focused = document.activeElement.closest("#models")?.contains(document.activeElement) && document.activeElement.value;
  at("models").replaceChildren(...models.map((own, i) => {
    const down = own.state === "failed";
    if (down) picked.delete(own.id);
    const box = element("input", { type: "checkbox", id: `model-${i}`, value: own.id, checked: picked.has(own.id), disabled: down, "aria-describedby": `state-${i}` });
    box.addEventListener("change", () => { picked[box.checked ? "add" : "delete"](own.id); showWeights(); });
    const state = own.state === "idle" ? "idle, starts when asked" : own.state;
    return element("li", { className: own.state }, box,
      element("label", { htmlFor: box.id }, breakable(own.id)),
      element("span", { className: "soft", id: `state-${i}` }, `${own.kind}, `, element("i", { className: "state" }, state), own.reason && `: ${own.reason}`));
  }));
  [...at("models").querySelectorAll("input")].find((box) => box.value === focused)?.focus();
  showWeights();
}

function showWeights() {
  const gated = (models ?? []).filter((own) => own.kind === "gated" && picked.has(own.id));
  const names = [...new Set(gated.flatMap((own) => own.objectives.map(({ name }) => name)))];
  at("steer").hidden = !names.length;
  at("weights").replaceChildren(...names.map((name, i) => {
    const field = element("input", { type: "number", step: "any", id: `weight-${i}`, value: steering.get(name) ?? "", name, placeholder: "gate" });
    field.addEventListener("input", () => { steering.set(name, field.value); tellSteered(); });
    return element("li", {}, element("label", { htmlFor: field.id }, breakable(name)), field);
  }));
  tellSteered();
}

function tellSteered() {
  const num = fields().filter((field) => field.value).length;
  at("steered").textContent = num ? `: ${num} weight${num > 1 ? "s" : ""} of your own` : "";
  fields().forEach((field) => { field.placeholder = num ? "0" : "gate"; });
}

const fields = () => [...at("weights").querySelectorAll("input")];

function steer(weights) {
  steering.clear();
  for (const [name, weight] of Object.entries(weights)) steering.set(name, String(weight));
  showWeights();
  changed();
}

at("unsteer").addEventListener("click", () => steer({}));
at("from-gate").addEventListener("click", () =>
  steer(Object.fromEntries(Object.entries(lastGates).map(([name, weight]) => [name, +weight.toPrecision(4)]))));

// Asking

function read() {
  const turns = [...at("turns").children].map((item) => ({
    role: item.querySelector("select").value,
    content: item.querySelector("textarea").value,
  }));
  const responses = [...at("responses").querySelectorAll("textarea")].map((text) => text.value);
  const weights = Object.fromEntries(fields().filter((own) => own.value).map((own) => [own.name, +own.value]));
  return {
    models: (models ?? []).map(({ id }) => id).filter((id) => picked.has(id)),
    details: DETAILS,
    items: [{ prompt: turns, responses }],
    ...(Object.keys(weights).length && { weights }),
  };
}

/** What is wrong with the form and the field to go to, or null. */
function complaint({ models: asked, items: [{ prompt }] }) {
  const empty = [...at("ask").querySelectorAll("textarea")].find((text) => !text.value.trim());
  if (empty) return [`${empty.ariaLabel ?? empty.labels[0].textContent.trim().slice(2)} is empty.`, empty];
  if (!["user", "tool"].includes(prompt.at(-1).role)) {
    return ["A prompt ends with a user or tool turn; what the assistant says last is a response.", at("turns").lastElementChild.querySelector("select")];
  }
  const odd = fields().find((field) => field.validity.badInput);
  if (odd) return [`The weight of ${odd.name} is no number.`, odd];
  if (!asked.length) return ["Choose a model.", at("models").querySelector("input:enabled") ?? at("score")];
  return null;
}

async function score() {
  at("ask").querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
  const asked = read();
  const wrong = complaint(asked);
  if (wrong) {
    say(wrong[0]);
    wrong[1].ariaInvalid = "true";
    return wrong[1].focus();
  }
  running?.abort();
  const mine = (running = new AbortController());
  at("cancel").hidden = false;
  say("Scoring…");
  const start = performance.now();
  try {
    const answer = await call("rewards", { method: "POST", body: JSON.stringify(asked), signal: mine.signal });
    const milliseconds = performance.now() - start;
    say(showAnswer(at("results"), { asked, answer, models, milliseconds }));
    const gates = answer.results.flatMap(({ items: [scores] }) => scores.map(({ gate }) => gate ?? {}));
    if (!asked.weights) lastGates = Object.assign({}, ...gates);
    at("from-gate").disabled = !Object.keys(lastGates ?? {}).length;
    at("stale").hidden = true;
    at("results").scrollIntoView();
    listModels(); // asking may have started one
  } catch (error) {
    if (running === mine) failed(error, say, score);
  } finally {
    if (running === mine) {
      running = null;
      at("cancel").hidden = true;
    }
  }
}

const changed = () => { at("stale").hidden = !at("results").childElementCount; };

at("ask").addEventListener("input", changed);
at("ask").addEventListener("submit", (event) => { event.preventDefault(); score(); });
at("cancel").addEventListener("click", () => running?.abort());
at("refresh").addEventListener("click", listModels);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || at("locked").contains(event.target)) return;
  event.preventDefault();
  at("ask").requestSubmit();
});

// A link that holds the form, behind the # that browsers do not send

at("link").addEventListener("click", async () => {
  const { models: asked, weights = {}, items: [{ prompt, responses }] } = read();
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify({ prompt, responses, models: asked, weights }))}`);
  try {
    await navigator.clipboard.writeText(location.href);
    say("Copied. The link holds the texts themselves.");
  } catch { // no clipboard without https
    say("The link is in the address bar. It holds the texts themselves.");
  }
});

function restore() {
  const fresh = { prompt: [{ role: "user", content: "" }], responses: ["", ""], models: [], weights: {} };
  let found = fresh;
  try {
    if (location.hash) found = { ...fresh, ...JSON.parse(decodeURIComponent(location.hash.slice(1))) };
    const { prompt, responses } = found;
    if (!prompt.length || responses.length < FEWEST || responses.length > MOST_RESPONSES) throw new Error();
  } catch {
    say("The link cannot be read.");
    found = fresh;
  }
  at("turns").replaceChildren();
  at("responses").replaceChildren();
  found.prompt.forEach(({ role, content }) => add(at("turns"), String(content), role));
  found.responses.forEach((text) => add(at("responses"), String(text)));
  found.models.forEach((id) => picked.add(id));
  steer(found.weights);
}

window.addEventListener("hashchange", restore);
restore();
listModels();
