// What all panels share: building elements, asking the server, words, and looking again only while somebody looks.

// h("button", {class: "x", onclick: f, "data-id": 1}, "text", child): text is always text, never markup.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

export const url = (path) => new URL(path, document.baseURI).href;
export const thumbnail = (path, size) => url(`api/thumbnail?${new URLSearchParams({ path, size })}`);

// The server said no: `findings` are [{field, message, remedy, severity}], or one made from the status.
export class Refused extends Error {
  constructor(status, findings) {
    super(findings.map((f) => `${f.field}: ${f.message} ${f.remedy}`.trim()).join("\n"));
    this.status = status;
    this.findings = findings;
  }
}

// get("api/runs") reads; post("api/runs/x/stop", {...}) changes. Both give the JSON answer or throw Refused.
export const get = (path, options = {}) => ask(path, options);
export const post = (path, body = {}) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(url(path), { credentials: "same-origin", ...options });
  } catch {
    throw new Refused(0, [{ field: t("server"), message: t("does not answer."), remedy: t("Is Limner still running?"), severity: "error" }]);
  }
  const said = await (answer.ok ? answer.json() : answer.json().catch(() => ({})));
  await released;
  if (answer.ok) return said;
  throw new Refused(answer.status, said.findings ?? [{ field: t("server"), message: String(answer.status), remedy: "", severity: "error" }]);
}

// Between a press and its click an answer waits: what it moved away in between would not be clicked.
let released = Promise.resolve();
let release = () => {};
const press = () => {
  released = new Promise((resolve) => (release = resolve));
  setTimeout(release, 1000); // of a release in a menu, or outside of the window, a page may never hear
};
addEventListener("pointerdown", press, { capture: true });
// the click comes after the release, a finger's some milliseconds
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => setTimeout(release, 50), { capture: true });

// Calls `look` now and then every `milliseconds`, one call at a time, never while the page or `element` is hidden.
export function watchWhileSeen(element, look, milliseconds = 1000) {
  let busy = false;
  const turn = async () => {
    if (busy || document.hidden || !element.isConnected || element.offsetParent === null) return;
    busy = true;
    try {
      await look();
    } finally {
      busy = false;
    }
  };
  setInterval(turn, milliseconds);
  document.addEventListener("visibilitychange", turn);
  turn();
}

let words = {};
export const t = (text) => words[text] ?? text;

// fill("{n} of {m}", {n: 1, m: 2}): "1 of 2". The text with its marks is what is translated.
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (mark, name) => (name in values ? String(values[name]) : mark));

export async function loadWords() {
  const language = document.documentElement.dataset.language ?? "en";
  if (language !== "en") words = await get(`studio/words/${language}.json`).catch(() => ({}));
}

// A passing message in the corner; errors stay until they are clicked away.
export function say(text, kind = "note") {
  let corner = document.querySelector(".limner-corner");
  if (!corner) document.body.append((corner = h("div", { class: "limner-corner", role: "status", "aria-live": "polite" })));
  const note = h("div", { class: `limner-note ${kind}`, onclick: () => note.remove() }, text);
  corner.append(note);
  if (kind !== "error") setTimeout(() => note.remove(), 6000);
}

export const sayRefused = (error) => {
  if (!(error instanceof Refused)) throw error;
  say(error.message, "error");
};

// Panels open one another: go("runs", {run: id}) shows the tab and tells its panel. A tab's panel is mounted when the tab is
// first seen, so what it is told waits for it.
const waiting = new Map();
export function go(tab, detail = {}) {
  waiting.set(tab, detail);
  document.querySelector(`#tab-${tab}-button`)?.click();
  window.dispatchEvent(new CustomEvent(`limner:${tab}`, { detail }));
}

// A panel's side: take(detail) is called for everything that `go` tells it, be it told before.
export function arriving(tab, take) {
  const told = (detail) => {
    waiting.delete(tab);
    take(detail);
  };
  window.addEventListener(`limner:${tab}`, ({ detail }) => told(detail));
  if (waiting.has(tab)) told(waiting.get(tab));
}

// An address that names a run opens its tab: a reload stays where one was.
if (location.hash.startsWith("#run=")) go("runs");

// Copies text, and says so.
export async function copyText(text) {
  const isDone = navigator.clipboard ? await navigator.clipboard.writeText(text).then(() => true, () => false) : copySelected(text);
  if (isDone) say(t("Copied."));
  else say(t("The browser does not allow copying."), "error");
}

// Without https, browsers offer only this old way: to select it and copy that. False if they don't allow it.
function copySelected(text) {
  const focused = document.activeElement;
  const area = h("textarea", {}, text);
  area.style.position = "fixed"; // where it can't scroll the page
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  focused.focus();
  return isDone;
}
