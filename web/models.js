/** The models of the server, and weights that take the gate's place. */
import { breakable, element } from "./dom.js";

const at = (id) => document.getElementById(id);
const texts = new Map(); // of the weight fields, by objective

export const picked = new Set();
export let models = null;

/** Takes the list of `/v1/models`; at first its defaults are picked, unless a link picked some. */
export function takeModels(listed) {
  const isFirst = models === null && !picked.size;
  for (const model of listed) if (isFirst && model.default) picked.add(model.id);
  models = listed;
  showModels();
}

export function showModels() {
  const focused = document.activeElement.closest("#models input")?.value;
  at("models").replaceChildren(...(models ?? []).map((model, i) => {
    const disabled = model.state === "failed";
    if (disabled) picked.delete(model.id);
    const box = element("input", {
      type: "checkbox",
      id: `model-${i}`,
      value: model.id,
      checked: picked.has(model.id),
      disabled,
      "aria-describedby": `state-${i}`,
    });
    box.addEventListener("change", () => {
      if (box.checked) picked.add(model.id);
      else picked.delete(model.id);
      showWeights();
    });
    const text = model.state === "idle" ? "idle, starts when asked" : model.state;
    const state = element("span", { className: "state" }, text);
    const why = model.reason && `: ${model.reason}`;
    const id = `state-${i}`;
    const parts = Object.entries(model.parts ?? {}).map(([name, { kind }]) => `${name} (${kind})`);
    const terms = parts.length ? [`of ${parts.join(", ")}`] : [];
    terms.push(...termsOf("limits", model.limits), ...termsOf("cost", model.cost));
    const bounds = terms.length ? element("small", {}, terms.join("; ")) : null;
    const about = element("span", { className: "soft", id }, `${model.kind}, `, state, why, bounds);
    const label = element("label", { htmlFor: box.id }, breakable(model.id));
    return element("li", { className: model.state }, box, label, about);
  }));
  [...at("models").querySelectorAll("input")].find(({ value }) => value === focused)?.focus();
  showWeights();
}

/** Limits or cost of a model in words: `limits: 256 prompt tokens, 192 response tokens`. */
function termsOf(what, numbers) {
  const named = Object.entries(numbers ?? {});
  const words = named.map(([name, n]) => `${n.toLocaleString("en")} ${name.replaceAll("_", " ")}`);
  return words.length ? [`${what}: ${words.join(", ")}`] : [];
}

function showWeights() {
  const gated = (models ?? []).filter(({ id, kind }) => kind === "gated" && picked.has(id));
  const names = [...new Set(gated.flatMap(({ objectives }) => objectives.map(({ name }) => name)))];
  at("steer").hidden = !names.length;
  at("weights").replaceChildren(...names.map((name, i) => {
    const value = texts.get(name) ?? "";
    const field = element("input", { type: "number", step: "any", id: `weight-${i}`, name, value });
    field.addEventListener("input", () => {
      texts.set(name, field.value);
      tellSteered();
    });
    return element("li", {}, element("label", { htmlFor: field.id }, breakable(name)), field);
  }));
  tellSteered();
}

export const weightFields = () => [...at("weights").querySelectorAll("input")];

function tellSteered() {
  const num = weightFields().filter(({ value }) => value).length;
  at("steered").textContent = num ? `, ${num} set` : "";
  for (const field of weightFields()) field.placeholder = num ? "0" : "gate";
}

/** Sets the weights by objective; those not named are empty. */
export function steer(weights) {
  texts.clear();
  for (const [name, weight] of Object.entries(weights)) texts.set(name, String(weight));
  showWeights();
}
