/** Elements from values. Texts become text nodes, so that no text is ever markup. */
import { letter } from "./numbers.js";

/**
 * @param {string} tag
 * @param {object} set properties; `style` by name; `role`, `scope` and `aria-` as attributes
 * @param {...(Node|string|number|null)} children null is left out
 */
export function element(tag, set = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(set)) {
    if (name === "style") for (const key in value) made.style.setProperty(key, value[key]);
    else if (/^(aria-.*|role|scope)$/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A name that may be broken behind its hyphens, underscores and slashes. */
export function breakable(name) {
  const made = element("span");
  for (const part of name.split(/(?<=[-_/])/)) made.append(part, element("wbr"));
  return made;
}

/** Class of the color of a response; past four they share one, and the letter tells them apart. */
export const color = (i) => `r${Math.min(i, 4)}`;
export const tag = (i) => element("b", { className: `tag ${color(i)}` }, letter(i));

export const head = (child, className = "") => element("th", { scope: "col", className }, child);
export const cell = (child, className = "") => element("td", { className }, child);
export const row = (name, ...cells) =>
  element("tr", {}, element("th", { scope: "row" }, name), ...cells);

/** A table that scrolls in its own box; all but the caption are nodes. */
export function table(caption, heads, rows, foot = []) {
  const made = element(
    "table",
    {},
    element("caption", {}, element("div", {}, caption)),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
    element("tfoot", {}, ...foot),
  );
  const box = { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption };
  return element("div", box, made);
}

/** A select with its label. */
export function chooser(label, options, chosen, onchange) {
  const made = options.map(([value, text]) => element("option", { value }, text));
  const select = element("select", { onchange }, ...made);
  select.value = chosen;
  return [select, element("label", { className: "inline" }, label, select)];
}

let sections = 0;

export function section(title, ...children) {
  const id = `result-${sections++}`;
  return element("section", { "aria-labelledby": id }, element("h2", { id }, title), ...children);
}
