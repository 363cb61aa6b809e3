// One option as a field: its name, an input of its kind, its help, what is wrong with it. It knows no option by name.

import { fill, h, t } from "./common.js";
import { chooseFolder } from "./folders.js";

let numIds = 0;

// `store` says what stands in the form: set(path, text or null), values(), findings(), applies(option).
export function drawField(option, store) {
  const id = `setting-${++numIds}`;
  const input = drawInput(option, id, (text) => store.set(option.path, text === option.default ? null : text));
  const [first, rest] = split(option.help);
  const more = h("details", { class: "more" }, h("summary", {}, t("more")), h("p", {}, rest, facts(option)));
  const reset = h("button", { type: "button", class: "reset", title: t("Back to the default"), "aria-label": `${t("Back to the default")}: ${option.path}`, onclick: () => store.set(option.path, null) }, "↺");
  const mistake = h("p", { class: "mistake", id: `${id}-mistake`, hidden: true });
  const spoken = option.path.slice(option.section.length + 1).replaceAll("_", " ");
  const name = option.unit && spoken.endsWith(` ${option.unit}`) ? spoken.slice(0, -option.unit.length - 1) : spoken;
  const label = h("label", { for: id }, name, option.unit && h("span", { class: "soft" }, ` (${option.unit})`));
  const place = (option.input === "path" || option.files) && h("button", { type: "button", onclick: () => browse(option, store) }, t("Browse"));
  const box = h(
    "div",
    { class: `field ${option.input}`, "data-path": option.path },
    h("div", { class: "name" }, label, h("code", { class: "soft" }, option.path), reset),
    h("div", { class: "entry" }, input.element, input.words, place),
    mistake,
    h("div", { class: "help soft", id: `${id}-help` }, h("span", {}, first), more),
  );
  input.element.setAttribute("aria-describedby", `${id}-help`);
  const found = `${option.path} ${option.kohya ?? ""} ${option.help} ${spoken}`.toLowerCase();
  const isChanged = () => option.path in store.values();
  const wrong = () => store.findings().filter((f) => f.field === option.path || f.field.startsWith(`${option.path}[`));
  const draw = (words) => {
    box.hidden = !store.applies(option) || !words.every((word) => found.includes(word));
    box.classList.toggle("changed", isChanged());
    reset.hidden = !isChanged();
    input.show(store.values()[option.path]);
    const said = wrong();
    const errors = said.some((f) => f.severity === "error");
    mistake.hidden = !said.length;
    mistake.className = `mistake ${errors ? "error" : "warning"}`;
    mistake.textContent = said.map((f) => `${f.message} ${f.remedy}`.trim()).join("\n");
    input.element.setAttribute("aria-invalid", String(errors));
    input.element.setAttribute("aria-describedby", said.length ? `${id}-mistake ${id}-help` : `${id}-help`);
  };
  return { box, option, draw, isChanged, isWrong: () => wrong().some((f) => f.severity === "error"), input: input.element };
}

// The first sentence of a help, and the rest.
function split(help) {
  const end = help.match(/^.{15,}?\.(?= [A-Z"0-9])|^.+?。/);
  return end ? [end[0], help.slice(end[0].length).trimStart()] : [help, ""];
}

function facts(option) {
  const kohya = option.kohya && fill(t("In kohya_ss: {name}"), { name: option.kohya }) + (option.inverted ? ` (${t("the opposite")})` : "");
  const usual = option.default && `${t("Default")}: ${option.default}`;
  return [option.expects, usual, kohya].filter(Boolean).map((fact) => h("span", { class: "fact" }, fact));
}

async function browse(option, store) {
  const typed = store.values()[option.path] ?? "";
  const chosen = await chooseFolder({ start: option.input !== "list" && /[/\\]/.test(typed) ? typed : "", files: true });
  if (chosen === null) return;
  const given = option.input === "list" && (texts(store.values()[option.path] ?? option.default ?? "[]") ?? []);
  store.set(option.path, given ? JSON.stringify([...given, chosen]) : chosen);
}

// --- inputs: `element`, and `show(text)` that puts a text (undefined: not given) into it, unless it stands there already ---

function drawInput(option, id, change) {
  const draw = { switch: drawSwitch, choice: drawChoice, list: drawList }[option.input] ?? drawText;
  return draw(option, id, change);
}

function drawSwitch(option, id, change) {
  const element = h("input", { type: "checkbox", id, onchange: () => change(String(element.checked)) });
  return { element, show: (text) => (element.checked = (text ?? option.default) === "true") };
}

function drawChoice(option, id, change) {
  const element = h("select", { id, onchange: () => change(element.value || null) });
  if (option.optional) element.append(h("option", { value: "" }, t("not given")));
  element.append(...option.choices.map((choice) => h("option", { value: choice }, choice)));
  return { element, show: (text) => (element.value = text ?? option.default ?? "") };
}

function drawText(option, id, change) {
  const isText = option.input === "text";
  // an emptied text is the empty text; an emptied number or path is one that was not given
  const element = h("input", {
    type: "text", id, spellcheck: "false", autocomplete: "off",
    inputmode: option.input === "number" ? "decimal" : null,
    oninput: () => change(element.value === "" && !isText ? null : element.value),
  });
  const show = (text) => {
    put(element, text ?? "");
    element.placeholder = text === "" ? t("(empty)") : option.default || (option.required ? t("needed") : t("not given"));
  };
  if (!option.choices) return { element, show };
  const words = h("datalist", { id: `${id}-words` }, option.choices.map((choice) => h("option", { value: choice })));
  element.setAttribute("list", words.id);
  return { element, show, words };
}

function drawList(option, id, change) {
  const element = h("textarea", { id, rows: "2", spellcheck: "false", oninput: () => change(fromLines(element.value)) });
  element.placeholder = toLines(option.default ?? "[]").replaceAll("\n", "  ") || (option.required ? t("needed, one a line") : t("one a line"));
  return { element, show: (text) => fromLines(element.value) === (text ?? option.default) || put(element, toLines(text ?? "[]")) };
}

function put(element, text) {
  if (element.value !== text) element.value = text;
}

// A list is a TOML array, which is JSON too. In the form it stands one a line; one that lines cannot say stands as it is.
export function toLines(text) {
  const items = texts(text);
  if (items === null) return text;
  const plain = items.every((item) => item !== "" && !/[\n\r]/.test(item)) && !items[0]?.trimStart().startsWith("[");
  return plain ? items.join("\n") : text;
}

export function fromLines(lines) {
  if (lines.trimStart().startsWith("[") && texts(lines)) return lines;
  return JSON.stringify(lines.split("\n").filter((line) => line !== ""));
}

function texts(text) {
  try {
    const items = JSON.parse(text);
    return Array.isArray(items) && items.every((item) => typeof item === "string") ? items : null;
  } catch {
    return null;
  }
}
