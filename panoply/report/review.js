"use strict";
/* Shows one pair at a time, takes a verdict by key or button, and saves all verdicts as a file. */
const rows = JSON.parse(document.getElementById("rows").textContent);
const store = "panoply-audit-" + (rows.length ? rows[0].row_id + rows.length : "none");
const verdicts = read();
let place = Math.max(0, rows.findIndex((row) => !(row.row_id in verdicts)));

/** Verdicts of an earlier visit; a browser may refuse to keep any for a file. */
function read() {
  try {
    return JSON.parse(localStorage.getItem(store)) || {};
  } catch {
    return {};
  }
}

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify(verdicts));
  } catch {
    /* They stay until the page is closed. */
  }
}

function show() {
  const row = rows[place];
  const judged = rows.filter((each) => each.row_id in verdicts).length;
  const at = rows.length ? `Pair ${place + 1} of ${rows.length}, ` : "";
  document.getElementById("progress").textContent = `${at}${judged} judged`;
  if (!row) return;
  document.getElementById("pair").hidden = false;
  const turns = row.prompt.flatMap((turn) => {
    const role = document.createElement("p");
    role.className = "role";
    role.textContent = turn.role;
    const text = document.createElement("div");
    text.textContent = turn.content;
    return [role, text];
  });
  const prompt = document.getElementById("prompt");
  prompt.replaceChildren(...turns);
  prompt.scrollTop = prompt.scrollHeight; // a response answers the last turn
  ["first", "second"].forEach((name, i) => {
    const side = document.getElementById(name);
    const text = side.querySelector(".text");
    text.textContent = row.responses[i].text;
    text.scrollTop = 0;
    side.classList.toggle("preferred", verdicts[row.row_id] === row.responses[i].id);
  });
  for (const [key, verdict] of [["1", row.responses[0].id], ["2", row.responses[1].id], ["0", null]])
    document
      .querySelector(`[data-key="${key}"]`)
      .setAttribute("aria-pressed", String(verdicts[row.row_id] === verdict));
}

function judge(preferred) {
  verdicts[rows[place].row_id] = preferred;
  keep();
  move(1);
}

function move(step) {
  place = Math.min(Math.max(place + step, 0), rows.length - 1);
  show();
}

function save() {
  const judged = rows.filter((row) => row.row_id in verdicts);
  const lines = judged.map((row) =>
    JSON.stringify({ row_id: row.row_id, preferred: verdicts[row.row_id] }),
  );
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/plain" }));
  link.download = "verdicts.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser may read it later
}

const actions = {
  1: () => judge(rows[place].responses[0].id),
  2: () => judge(rows[place].responses[1].id),
  0: () => judge(null),
  n: () => move(1),
  p: () => move(-1),
  s: save,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !rows.length) return;
  if (Object.hasOwn(actions, event.key)) actions[event.key]();
});
for (const button of document.querySelectorAll("[data-key]"))
  button.addEventListener("click", () => rows.length && actions[button.dataset.key]());
show();
