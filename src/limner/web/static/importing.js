// A file fills the form: our own TOML, or one of kohya_ss or sd-scripts, or what a LoRA says of its training.

import { fill, h, post, say, sayRefused, t } from "./common.js";
import { showDialog } from "./dialog.js";
import * as store from "./store.js";

export const IMPORTABLE = ".toml,.json,.txt,.sh,.bat,.safetensors";
export const isConfiguration = (name) => /\.(toml|json|safetensors)$/i.test(name);
const MAX_HEADER = 100_000_000;

// What stands in the form after it is what the file says; a report says what became of each of kohya's keys.
export async function load(file) {
  try {
    const { values, report } = await read(file);
    store.replace(values, "", true);
    say(fill(t("Loaded {name}."), { name: file.name }));
    if (report.length) showReport(file.name, report);
  } catch (error) {
    sayRefused(error);
  }
}

// What a file sets, and the report: {values, report}.
export async function read(file) {
  const text = file.name.toLowerCase().endsWith(".safetensors") ? await metadataOf(file) : await file.text();
  return post("api/import", { name: file.name.slice(-300), text });
}

// The JSON of a safetensors file's metadata; the tensors stay here. "" for what is no such file.
async function metadataOf(file) {
  const first = new DataView(await file.slice(0, 8).arrayBuffer());
  const length = first.byteLength < 8 ? 0 : Number(first.getBigUint64(0, true));
  if (!length || length > Math.min(MAX_HEADER, file.size - 8)) return "";
  try {
    return JSON.stringify(JSON.parse(await file.slice(8, 8 + length).text()).__metadata__ ?? {});
  } catch {
    return "";
  }
}

export function showReport(name, report) {
  const groups = [
    ["unsupported", t("Not supported"), true],
    ["unknown", t("Not known"), true],
    ["converted", t("Converted"), true],
    ["idle", t("Without effect"), false],
    ["taken", t("Taken over"), false],
  ];
  const drawn = groups
    .map(([outcome, title, open]) => [report.filter((line) => line.outcome === outcome), title, open])
    .filter(([lines]) => lines.length)
    .map(([lines, title, open]) => h("details", { open }, h("summary", {}, h("b", {}, `${title}: ${lines.length}`)), h("ul", { class: "import-report" }, lines.map(row))));
  const box = h("dialog", { class: "limner limner-dialog", "aria-label": t("What became of it") },
    h("h2", {}, t("What became of it")), h("p", { class: "soft" }, name), drawn,
    h("div", { class: "row end" }, h("button", { type: "button", class: "primary", onclick: () => box.close() }, t("Close"))));
  showDialog(box);
}

const row = (line) =>
  h("li", {}, h("code", {}, line.key), line.value !== "" && ` = ${line.value}`, line.becomes.length > 0 && [" → ", h("code", {}, line.becomes.join(", "))],
    line.why && h("span", { class: "soft" }, ` ${line.why}`));
