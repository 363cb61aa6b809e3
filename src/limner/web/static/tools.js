// What can be done with the whole form: load and save it as TOML, presets, the command that it stands for, clear it.

import { copyText, h, post, sayRefused, t } from "./common.js";
import { dialog } from "./dialog.js";
import { IMPORTABLE, load } from "./importing.js";
import { presets } from "./presets.js";
import * as store from "./store.js";

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
