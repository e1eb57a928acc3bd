/** The form: its request, the server's key, and a link that holds both. */
import { tag } from "./dom.js";
import { models, picked, showModels, steer, takeModels, weightFields } from "./models.js";
import { letter } from "./numbers.js";
import { showAnswer } from "./results.js";

const API = new URL("../v1/", import.meta.url); // beside this folder, whatever the route prefix
const DETAILS = ["objectives", "gate", "drivers", "provenance", "verdicts", "usage", "spread", "steps"];
const FEWEST = 2; // responses
const MOST = 26; // letters

const at = (id) => document.getElementById(id);
const say = (text) => { at("said").textContent = text; };
const changed = () => { at("stale").hidden = !at("results").childElementCount; };
let key = "";
let afterKey = null;
let running = null;
let gate = {};

// The server

class Refused extends Error {
  constructor({ status, headers }, payload) {
    const error = payload?.error ?? payload?.detail;
    const why = error?.message ?? (typeof error === "string" ? error : "");
    const wait = headers.get("retry-after");
    const parts = [`The server refused (${status})`, why, wait && `try again in ${wait} s`];
    super(parts.filter(Boolean).join(": "));
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(new URL(path, API), { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  const payload = await response.json().catch(() => null);
  if (!response.ok || payload === null) throw new Refused(response, payload);
  return payload;
}

/** Says why a call failed; where a key is missing or wrong, asks for it and calls `again`. */
function failed(error, show, again) {
  show(error.status === 401 ? "Waiting for an API key." : error.message);
  if (error.status !== 401) return;
  afterKey = again;
  at("wrong-key").hidden = !key;
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

async function listModels() {
  const show = (text) => { at("models-said").textContent = text; };
  try {
    takeModels((await call("models")).data);
    show(models.length ? "" : "This server has no models.");
  } catch (error) {
    failed(error, show, listModels);
  }
}

// Turns and responses

function renumber(list) {
  const rows = [...list.children];
  const responses = list === at("responses");
  rows.forEach((item, i) => {
    const name = responses ? `response ${letter(i)}` : `turn ${i + 1}`;
    const text = item.querySelector("textarea");
    text.ariaLabel = `Text of ${name}`;
    text.id = `${list.id}-${i}`;
    if (responses) item.querySelector("label").replaceChildren(tag(i), ` Response ${letter(i)}`);
    if (responses) item.querySelector("label").htmlFor = text.id;
    else item.querySelector("select").ariaLabel = `Role of ${name}`;
    item.querySelector("button").ariaLabel = `Remove ${name}`;
    item.querySelector("button").hidden = rows.length <= (responses ? FEWEST : 1);
  });
  at("add-response").hidden = at("responses").childElementCount >= MOST;
  changed();
}

function add(list, content = "", role = "") {
  const item = list.nextElementSibling.content.cloneNode(true).firstElementChild;
  item.querySelector("textarea").value = content;
  if (role) item.querySelector("select").value = role;
  item.querySelector("button").addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    renumber(list);
    next.querySelector("textarea").focus();
  });
  list.append(item);
  renumber(list);
  return item.querySelector("textarea");
}

at("add-response").addEventListener("click", () => add(at("responses")).focus());
at("add-turn").addEventListener("click", () => {
  const last = at("turns").lastElementChild.querySelector("select").value;
  add(at("turns"), "", last === "user" ? "assistant" : "user").focus();
});

// Asking

function read() {
  const prompt = [...at("turns").children].map((item) => ({
    role: item.querySelector("select").value,
    content: item.querySelector("textarea").value,
  }));
  const responses = [...at("responses").querySelectorAll("textarea")].map(({ value }) => value);
  const set = weightFields().filter(({ value }) => value);
  return {
    models: (models ?? []).map(({ id }) => id).filter((id) => picked.has(id)),
    items: [{ prompt, responses }],
    details: DETAILS,
    ...(set.length && { weights: Object.fromEntries(set.map((f) => [f.name, +f.value])) }),
  };
}

/** What is wrong with the form and the field to go to, or null. */
function complaint(request) {
  const empty = [...at("ask").querySelectorAll("textarea")].find(({ value }) => !value.trim());
  if (empty) return [`${empty.ariaLabel} is empty.`, empty];
  const role = at("turns").lastElementChild.querySelector("select");
  if (!["user", "tool"].includes(role.value)) {
    return ["The last turn must be a user's or a tool's; responses stand apart.", role];
  }
  const odd = weightFields().find(({ validity }) => validity.badInput);
  if (odd) return [`The weight of ${odd.name} is no number.`, odd];
  if (request.models.length) return null;
  return ["Choose a model.", at("models").querySelector("input:enabled") ?? at("refresh")];
}

async function score() {
  for (const field of at("ask").querySelectorAll("[aria-invalid]")) field.ariaInvalid = null;
  const request = read();
  const wrong = complaint(request);
  if (wrong) {
    const [why, field] = wrong;
    say(why);
    field.ariaInvalid = "true";
    return field.focus();
  }
  running?.abort();
  const { signal } = (running = new AbortController());
  say("Scoring…");
  const start = performance.now();
  try {
    const answer = await call("rewards", { method: "POST", body: JSON.stringify(request), signal });
    const milliseconds = performance.now() - start;
    say(showAnswer(at("results"), { request, answer, models, milliseconds }));
    at("stale").hidden = true;
    at("results").scrollIntoView();
    const scores = answer.results.flatMap(({ items }) => items[0]);
    if (!request.weights) gate = Object.assign({}, ...scores.map((score) => score.gate));
    at("from-gate").disabled = !Object.keys(gate).length;
    listModels(); // asking may have started some
  } catch (error) {
    if (!signal.aborted) failed(error, say, score);
  }
}

at("ask").addEventListener("input", changed);
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
at("refresh").addEventListener("click", listModels);
at("unsteer").addEventListener("click", () => {
  steer({});
  changed();
});
at("from-gate").addEventListener("click", () => {
  const rounded = Object.entries(gate).map(([name, weight]) => [name, +weight.toPrecision(3)]);
  steer(Object.fromEntries(rounded));
  changed();
});
document.addEventListener("keydown", (event) => {
  const wanted = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (!wanted || at("locked").contains(event.target)) return;
  event.preventDefault();
  score();
});

// A link that holds the form, behind the # that browsers do not send

at("link").addEventListener("click", async () => {
  const { details, ...state } = read();
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
  // There is no clipboard without https.
  const copied = navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  say(`The link is ${(await copied) ? "copied" : "in the address bar"}; it holds the texts.`);
});

function fill({ models: names = [], items: [{ prompt, responses }], weights = {} }) {
  at("turns").replaceChildren();
  at("responses").replaceChildren();
  for (const { role, content } of prompt) add(at("turns"), content, role);
  for (const text of responses.slice(0, MOST)) add(at("responses"), text);
  if (names.length) picked.clear();
  for (const id of names) picked.add(id);
  steer(weights);
  showModels();
}

const BLANK = { items: [{ prompt: [{ role: "user", content: "" }], responses: ["", ""] }] };

function restore() {
  try {
    fill(location.hash ? JSON.parse(decodeURIComponent(location.hash.slice(1))) : BLANK);
  } catch {
    say("The link cannot be read.");
    fill(BLANK);
  }
}

window.addEventListener("hashchange", restore);
restore();
listModels();
