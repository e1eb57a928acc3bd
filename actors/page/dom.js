/** Elements from values. Texts become text nodes, so that no text is ever markup. */

/**
 * @param {string} tag
 * @param {object} set properties; `style` by name, `data-`, `aria-` and `role` as attributes
 * @param {...(Node|string|null)} children
 */
export function element(tag, set = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(set)) {
    if (name === "style") Object.entries(value).forEach(([key, own]) => made.style.setProperty(key, own));
    else if (/^(aria-|data-|role$|scope$|for$)/.test(name)) made.setAttribute(name, value);
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

/**
 * A table that scrolls in its own box.
 * @param {string} caption
 * @param {Node[]} heads cells of the head
 * @param {Node[]} rows
 * @param {Node[]} foot rows below them
 */
export function table(caption, heads, rows, foot = []) {
  return element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, element("div", {}, caption)),
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...rows),
      foot.length ? element("tfoot", {}, ...foot) : null,
    ),
  );
}

export const column = (text, className = "") => element("th", { scope: "col", className }, text);
export const row = (head, ...cells) => element("tr", {}, element("th", { scope: "row" }, head), ...cells);
export const cell = (text, className = "") => element("td", { className }, text);
