// The form's value, shared by the panels of this page: option name -> typed text, holding only what the user set.
// It survives a reload of its tab (sessionStorage); a new tab starts from what was typed last (localStorage).

import { post } from "./common.js";
import { holds as conditionHolds } from "./when.js";

const KEY = `limner form ${new URL(".", document.baseURI).pathname}`;
const listeners = new Set();
let empty = { values: {}, proposed: {}, what: "", isLoaded: false };
let state = empty;
let options = [];
let answer = { findings: [], plan: null };
let checking = null;
let numUnderWay = 0;

function load() {
  for (const storage of [sessionStorage, localStorage]) {
    try {
      const saved = JSON.parse(storage.getItem(KEY));
      if (saved && typeof saved.values === "object") return { ...empty, ...saved };
    } catch {
      continue; // damaged: as if there were none
    }
  }
  return empty;
}

function keep(changes) {
  state = { ...state, ...changes };
  try {
    for (const storage of [sessionStorage, localStorage]) storage.setItem(KEY, JSON.stringify(state));
  } catch {
    // full or forbidden: the form works, it only does not survive a reload
  }
  tell();
  check();
}

const tell = () => listeners.forEach((listen) => listen());

// listen() is called after every change of values, findings or plan; returns a function that ends that.
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export const values = () => state.values;
export const what = () => state.what;
export const findings = () => answer.findings;
export const plan = () => answer.plan;
export const isChecking = () => checking !== null;
export const allOptions = () => options;

// Something that will change the form is under way, such as an upload.
export function during(promise) {
  numUnderWay += 1;
  promise.finally(() => {
    numUnderWay -= 1;
    tell();
  });
}

// Resolves when nothing is under way any more, and what came of it was checked.
export const settled = () =>
  new Promise((resolve) => {
    const look = () => {
      if (numUnderWay || checking) return;
      end();
      resolve();
    };
    const end = listen(look);
    look();
  });

// An empty form holds the user's own defaults.
export function start(sections, defaults) {
  empty = { ...empty, values: defaults };
  options = sections.flatMap((section) => section.options.map((option) => ({ ...option, section: section.name })));
  state = load();
  tell();
  check(0);
}

// Set one option's text; null takes it back to its default.
export function set(path, text) {
  const next = { ...state.values };
  if (text === null) delete next[path];
  else next[path] = text;
  keep({ values: next });
}

// Put other values in the place of all. To those that were loaded from a file, nothing is added of ourselves.
export const replace = (next, kind = state.what, isLoaded = false) => keep({ values: next, what: kind, proposed: {}, isLoaded });
export const clear = () => keep(empty);

// --- what applies ---

const isHere = (option) => !option.tags || option.tags.includes(textOf(`${option.section}.kind`));

// The text in effect: what was typed, if its option applies, else the default.
export function textOf(path) {
  const option = options.find((o) => o.path === path && (o.path.endsWith(".kind") || isHere(o)));
  if (!option) return "";
  return path in state.values && applies(option) ? state.values[path] : (option.default ?? "");
}

export const applies = (option) => isHere(option) && holds(option.when ?? "");

export const holds = (when) => conditionHolds(when, textOf, (path) => options.find((o) => o.path === path)?.input);

// What the server gets: values of options that apply. The others stay in the form, should they apply again.
export function sent() {
  const live = new Set(options.filter(applies).map((o) => o.path));
  return Object.fromEntries(Object.entries(state.values).filter(([path]) => live.has(path) || !isKnown(path)));
}

const isKnown = (path) => options.some((o) => o.path === path);

// --- asking the server ---

// Check what stands in the form, 300 ms after its last change; an answer to an older question is not used.
export function check(wait = 300) {
  clearTimeout(checking?.timer);
  const mine = (checking = {});
  mine.timer = setTimeout(async () => {
    const said = await post("api/check", { values: sent() }).catch((refused) => {
      if (!refused.findings) throw refused;
      return { findings: refused.findings, plan: null, proposals: {} };
    });
    if (mine !== checking) return;
    checking = null;
    answer = said;
    propose(said.proposals);
    tell();
    if (said.again) check(2000);
  }, wait);
}

// Fill in what the pictures propose where nothing was set, and renew it where it still stands as it was proposed.
function propose(proposals) {
  if (state.isLoaded) return;
  const next = { ...state.values };
  const proposed = {};
  for (const [path, text] of Object.entries(proposals)) {
    const untouched = path in next ? next[path] === state.proposed[path] : !(path in state.proposed);
    if (untouched) next[path] = text;
    proposed[path] = text;
  }
  if (JSON.stringify([next, proposed]) === JSON.stringify([state.values, state.proposed])) return;
  const changed = JSON.stringify(next) !== JSON.stringify(state.values);
  state = { ...state, proposed: { ...state.proposed, ...proposed } };
  if (changed) keep({ values: next });
}

export function refuse(found) {
  answer = { ...answer, findings: found };
  tell();
}
