// What can be done with the whole form: load and save it as TOML, presets, the command that it stands for, clear it.

import { copyText, fill, get, h, post, say, sayRefused, t } from "./common.js";
import { showDialog } from "./dialog.js";
import { IMPORTABLE, load } from "./importing.js";
import * as store from "./store.js";

// A preset is about how to train; which pictures, their trigger, the model and the name stay as they are.
const STAYS = ["data.path", "data.trigger", "model.base", "output.name"];

export function tools() {
  const chooser = h("input", { type: "file", accept: IMPORTABLE, class: "unseen", "aria-label": t("Load or import"), onchange: () => load(chooser.files[0]).finally(() => (chooser.value = "")) });
  const does = (label, act) => h("button", { type: "button", onclick: () => act().catch(sayRefused) }, label);
  return h(
    "div",
    { class: "row tools" },
    h("label", { class: "button" }, chooser, t("Load or import")),
    does(t("Save TOML"), save),
    does(t("Presets"), presets),
    does(t("Show command"), command),
    does(t("Clear"), async () => confirm(t("Forget everything that is set in this form?")) && store.clear()),
  );
}

async function save() {
  const { name, text } = await post("api/toml", { values: store.sent() });
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "application/toml" })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function dialog(title, ...inside) {
  const close = () => box.close();
  const box = h("dialog", { class: "limner limner-dialog", "aria-label": title }, h("h2", {}, title), inside, h("div", { class: "row end" }, h("button", { type: "button", onclick: close }, t("Close"))));
  showDialog(box);
  return close;
}

async function command() {
  const said = await post("api/command", { values: store.sent() });
  const line = (label, text) => {
    const copy = h("button", { type: "button", onclick: () => copyText(text) }, t("Copy"));
    return h("div", {}, h("div", { class: "row" }, h("b", {}, label), copy), h("pre", { tabindex: "0" }, text));
  };
  dialog(
    t("The command"),
    line(t("As a command line"), said.flags),
    line(t("The process that Train starts (RUN is its run folder)"), said.process),
  );
}

async function presets() {
  const list = h("ul", { class: "presets" });
  const name = h("input", { type: "text", id: "preset-name", placeholder: t("name of a new preset") });
  const draw = async () => list.replaceChildren(...(await get("api/presets")).map(row));
  const row = (preset) =>
    h(
      "li",
      {},
      h("div", {}, h("b", {}, preset.name), h("p", { class: preset.problem ? "mistake error" : "soft" }, preset.problem || preset.about)),
      h("button", { type: "button", disabled: Boolean(preset.problem), onclick: () => (apply(preset), close()) }, t("Use")),
      preset.own && h("button", { type: "button", class: "danger", "aria-label": `${t("Delete")} ${preset.name}`, onclick: () => post("api/presets/delete", { name: preset.name }).then(draw).catch(sayRefused) }, t("Delete")),
    );
  const values = () => Object.fromEntries(Object.entries(store.sent()).filter(([path]) => !STAYS.includes(path)));
  const keepAsDefaults = async () => {
    await post("api/settings", { defaults: values() });
    say(t("An empty form starts from these now."));
  };
  const keep = async () => {
    await post("api/presets/save", { values: values(), name: name.value.trim() });
    name.value = "";
    await draw();
  };
  await draw();
  const close = dialog(
    t("Presets"),
    list,
    h("div", { class: "quick" }, h("label", { for: "preset-name" }, t("Keep what is set now as a preset")), h("div", { class: "entry" }, name, h("button", { type: "button", onclick: () => keep().catch(sayRefused) }, t("Keep")))),
    h("div", { class: "row end" }, h("button", { type: "button", onclick: () => keepAsDefaults().catch(sayRefused) }, t("Make what is set now my defaults"))),
  );
}

function apply(preset) {
  const stays = Object.fromEntries(Object.entries(store.values()).filter(([path]) => STAYS.includes(path)));
  store.replace({ ...stays, ...preset.values }, "");
  say(fill(t("Preset {name} is in the form."), { name: preset.name }));
}
