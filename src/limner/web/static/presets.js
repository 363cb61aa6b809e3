// The presets: those for the form's model, by what they are about; the user's own can be kept, imported and deleted.

import { fill, get, h, post, say, sayRefused, t } from "./common.js";
import { dialog } from "./dialog.js";
import { IMPORTABLE, read, showReport } from "./importing.js";
import * as store from "./store.js";

// A preset is about how to train; which pictures, their trigger, the model and the name stay as they are.
const STAYS = ["data.path", "data.trigger", "model.base", "output.name"];
const without = (values) => Object.fromEntries(Object.entries(values).filter(([path]) => !STAYS.includes(path)));

export async function presets() {
  const list = h("div", {});
  const name = h("input", { type: "text", id: "preset-name", placeholder: t("name of a new preset") });
  const family = h("select", { id: "preset-family", onchange: () => draw() });
  let found = [];

  const draw = () => list.replaceChildren(...groups(found.filter((p) => !family.value || !p.families.length || p.families.includes(family.value)), row));
  const look = async () => {
    found = await get("api/presets");
    draw();
  };
  const row = (preset) =>
    h(
      "li",
      {},
      h("div", {}, h("b", {}, preset.name), h("p", { class: preset.problem ? "mistake error" : "soft" }, preset.problem || preset.about)),
      h("button", { type: "button", disabled: Boolean(preset.problem), onclick: () => (apply(preset), close()) }, preset.adds ? t("Add") : t("Use")),
      preset.own && h("button", { type: "button", class: "danger", "aria-label": `${t("Delete")} ${preset.name}`, onclick: () => post("api/presets/delete", { name: preset.name }).then(look).catch(sayRefused) }, t("Delete")),
    );
  const keepAsDefaults = async () => {
    await post("api/settings", { defaults: without(store.sent()) });
    say(t("An empty form starts from these now."));
  };
  const keep = async () => {
    await post("api/presets/save", { values: without(store.sent()), name: name.value.trim() });
    name.value = "";
    await look();
  };
  const take = async (file) => {
    const called = file.name.replace(/\.\w+$/, "").trim();
    const { values, report } = await read(file);
    const there = found.some((p) => p.own && p.name === called);
    if (there && !confirm(fill(t("Replace your preset {name}?"), { name: called }))) return;
    await post("api/presets/save", { values: without(values), name: called });
    await look();
    say(fill(t("{name} is kept as a preset."), { name: called }));
    if (report.length) showReport(file.name, report);
  };
  const chooser = h("input", { type: "file", accept: IMPORTABLE, class: "unseen", "aria-label": t("Import as a preset"), onchange: () => take(chooser.files[0]).catch(sayRefused).finally(() => (chooser.value = "")) });
  const drop = (event) => {
    event.preventDefault();
    event.stopPropagation();
    const [file] = event.dataTransfer.files;
    if (file) take(file).catch(sayRefused);
  };

  found = await get("api/presets");
  const families = [...new Set(found.flatMap((p) => p.families))];
  family.append(h("option", { value: "" }, t("All families")), ...families.map((one) => h("option", { value: one }, one)));
  family.value = families.includes(store.plan()?.family) ? store.plan().family : "";
  draw();
  const close = dialog(
    t("Presets"),
    h("div", { class: "row" }, h("label", { for: "preset-family" }, t("Family of the base model")), family),
    list,
    h("div", { class: "quick", ondragover: (event) => event.preventDefault(), ondrop: drop },
      h("label", { for: "preset-name" }, t("Keep what is set now as a preset")), h("div", { class: "entry" }, name, h("button", { type: "button", onclick: () => keep().catch(sayRefused) }, t("Keep"))),
      h("div", { class: "row" }, h("label", { class: "button" }, chooser, t("Import as a preset")), h("span", { class: "soft" }, t("A preset of kohya_ss, too: choose its file, or drop it here.")))),
    h("div", { class: "row end" }, h("button", { type: "button", onclick: () => keepAsDefaults().catch(sayRefused) }, t("Make what is set now my defaults"))),
  );
}

// The user's own first, then by family and by what they are about.
function groups(shown, row) {
  const titles = (p) => (p.own ? t("Your own") : [p.families.join(", "), p.adds ? t("for your card's memory") : t("for what is taught")].join(" · "));
  const parted = new Map();
  for (const preset of [...shown].sort((a, b) => b.own - a.own || a.adds - b.adds)) parted.set(titles(preset), [...(parted.get(titles(preset)) ?? []), preset]);
  return [...parted].map(([title, some]) => h("section", {}, h("h3", {}, title), h("ul", { class: "presets" }, some.map(row))));
}

// One about memory is laid over what is set; another takes its place.
function apply(preset) {
  if (preset.adds) {
    store.replace({ ...store.values(), ...preset.values });
    say(fill(t("Preset {name} is laid over what was set."), { name: preset.name }));
    return;
  }
  const stays = Object.fromEntries(Object.entries(store.values()).filter(([path]) => STAYS.includes(path)));
  store.replace({ ...stays, ...preset.values }, "");
  say(fill(t("Preset {name} is in the form."), { name: preset.name }));
}
