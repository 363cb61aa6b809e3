// The page "New run": pictures, what they are, the base model, one line that says the plan, and Train.

import { fill, get, go, h, post, Refused, sayRefused, t } from "./common.js";
import { chooseFolder } from "./folders.js";
import { showSetting } from "./form.js";
import { pictures } from "./pictures.js";
import * as store from "./store.js";
import { tools } from "./tools.js";

export function mount({ element }) {
  const parts = [folderField(), kindCards(), triggerField(), modelField(), nameField(), planLine()];
  const [folder, kinds, trigger, model, name, plan] = parts.map((part) => part.element);
  element.querySelector(".panel").append(
    h(
      "div",
      { class: "new-run" },
      h("section", { class: "card pictures" }, h("h2", {}, t("1. Pictures")), pictures(), folder),
      h(
        "div",
        { class: "aside" },
        h("section", { class: "card" }, h("h2", {}, t("2. What is it?")), kinds, trigger),
        h("section", { class: "card" }, h("h2", {}, t("3. Base model")), model, name),
        h("section", { class: "card plan" }, plan),
        tools(),
      ),
    ),
  );
  const draw = () => parts.forEach((part) => part.draw());
  store.listen(draw);
  draw();
}

// --- the quick fields: the same values as in "All settings" ---

let numIds = 0;

function quickField(path, label, placeholder, extra = null) {
  const id = `quick-${++numIds}`;
  const input = h("input", { type: "text", id, spellcheck: "false", autocomplete: "off", placeholder, oninput: () => store.set(path, input.value || null) });
  const mistake = h("p", { class: "mistake error", id: `${id}-mistake`, hidden: true });
  const element = h("div", { class: "quick" }, h("label", { for: id }, label), h("div", { class: "entry" }, input, extra), mistake);
  const draw = () => {
    const text = store.values()[path] ?? "";
    if (input.value !== text) input.value = text;
    const wrong = errors().filter((f) => f.field === path);
    mistake.hidden = !wrong.length;
    mistake.textContent = wrong.map((f) => `${f.message} ${f.remedy}`.trim()).join("\n");
    input.setAttribute("aria-invalid", String(wrong.length > 0));
    if (wrong.length) input.setAttribute("aria-describedby", mistake.id);
    else input.removeAttribute("aria-describedby");
  };
  return { element, draw, input };
}

let attempted = false;

// That there are no pictures yet is no mistake of somebody who has just come.
const errors = () => store.findings().filter((f) => f.severity === "error" && (attempted || f.field !== "data.path" || "data.path" in store.values()));

function folderField() {
  const browse = h("button", { type: "button", onclick: async () => {
    const chosen = await chooseFolder({ start: store.values()["data.path"] ?? "" });
    if (chosen !== null) store.set("data.path", chosen);
  } }, t("Browse"));
  return quickField("data.path", t("Or a folder on the server"), t("full path of a folder"), browse);
}

const triggerField = () => quickField("data.trigger", t("Trigger: the word that shall call it up"), t("for example: zwx"));
const nameField = () => quickField("output.name", t("Name of the file that is made"), "limner");

function modelField() {
  const typed = quickField("model.base", t("Path or Hugging Face id"), t("/path/model.safetensors or owner/name"));
  const select = h("select", { id: "quick-model", onchange: () => {
    other = select.value === "";
    if (!other) store.set("model.base", select.value === "pocket" ? null : select.value);
    draw();
    if (other) typed.input.focus();
  } });
  const element = h("div", {}, h("div", { class: "quick" }, h("label", { for: "quick-model", class: "unseen" }, t("Base model")), select), typed.element);
  let other = false;
  let known = ["pocket"];
  const draw = () => {
    const base = store.values()["model.base"] ?? "pocket";
    if (!known.includes(base)) other = true;
    select.value = other ? "" : base;
    typed.element.hidden = !other && !errors().some((f) => f.field === "model.base");
    typed.draw();
  };
  get("api/models").then((models) => {
    known = models.filter((m) => !m.problem).map((m) => m.base);
    select.replaceChildren(...models.map(modelOption), h("option", { value: "" }, t("Another: a path, or a Hugging Face id")));
    other = false;
    draw();
  }, sayRefused);
  return { element, draw };
}

function modelOption(model) {
  if (model.problem) return h("option", { value: model.base, disabled: true }, `${model.name}: ${model.problem}`);
  const size = model.mib >= 1024 ? `${(model.mib / 1024).toFixed(1)} GiB` : `${model.mib} MiB`;
  const name = model.name === "pocket" ? t("pocket (to try things with)") : model.name;
  return h("option", { value: model.base }, [name, model.family, model.prediction, `${model.resolution} px`, size].join(" · "));
}

// A kind is a preset of Limner's for the model's family; choosing another takes back what the last one set.
function kindCards() {
  const kinds = { person: t("Person"), style: t("Style"), object: t("Object"), other: t("Other") };
  const asked = get("api/presets").catch((refused) => (sayRefused(refused), []));
  const valuesOf = (presets, kind) => presets.find((p) => !p.own && p.name === `${store.plan()?.family ?? "sd1"}-lora-${kind}`)?.values ?? {};
  const choose = async (kind) => {
    const presets = await asked;
    const left = valuesOf(presets, store.what());
    const kept = Object.entries(store.values()).filter(([path, text]) => left[path] !== text);
    store.replace({ ...Object.fromEntries(kept), ...valuesOf(presets, kind) }, kind);
  };
  const radios = Object.entries(kinds).map(([kind, label]) => {
    const input = h("input", { type: "radio", name: "kind", value: kind, onchange: () => choose(kind) });
    return { input, element: h("label", { class: "kind" }, input, label) };
  });
  const element = h("div", { class: "kinds", role: "radiogroup", "aria-label": t("What is it?") }, radios.map((r) => r.element));
  const draw = () => radios.forEach((r) => (r.input.checked = r.input.value === store.what()));
  return { element, draw };
}

// --- the plan, and Train ---

function planLine() {
  const line = h("p", { class: "plan-line", "aria-live": "polite" });
  const found = h("ul", { class: "findings" });
  const button = h("button", { type: "button", class: "primary train", onclick: train }, t("Train"));
  const memory = h("details", { class: "plan-memory", hidden: true });
  const element = h("div", {}, line, memory, found, button);
  let starting = false;

  async function train() {
    attempted = starting = true;
    draw();
    try {
      await store.settled(); // whoever presses Train while pictures are on their way means those too
      const { run } = await post("api/train", { values: store.sent() });
      attempted = false;
      go("runs", { run });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (!error.findings.every((f) => store.allOptions().some((o) => f.field.startsWith(o.path)))) sayRefused(error);
      store.refuse(error.findings);
    } finally {
      starting = false;
      draw();
    }
  }

  const draw = () => {
    line.textContent = store.plan() ? planWords(store.plan()) : noPlanWords();
    drawMemory(memory, store.plan());
    const warnings = store.findings().filter((f) => f.severity === "warning");
    const shown = [...errors(), ...("data.path" in store.values() ? warnings : [])].slice(0, 12);
    found.hidden = !shown.length;
    found.replaceChildren(...shown.map(findingRow));
    button.disabled = starting;
    button.textContent = starting ? t("Starting …") : t("Train");
  };
  return { element, draw };
}

function noPlanWords() {
  if (!("data.path" in store.values())) return t("Give it some pictures; all else has defaults.");
  return store.isChecking() ? t("Looking …") : t("The plan stands here once this is mended:");
}

function findingRow(finding) {
  const path = finding.field.replace(/\[\d+\]$/, "");
  const words = `${finding.message} ${finding.remedy}`.trim();
  const isSetting = store.allOptions().some((option) => option.path === path && store.applies(option));
  const name = finding.field.split(/[/\\]/).pop();
  const where = isSetting ? h("button", { type: "button", class: "link", onclick: () => showSetting(path) }, finding.field) : h("b", {}, name);
  return h("li", { class: finding.severity }, where, " ", words);
}

function planWords(plan) {
  const pictures = fill(t("{n} pictures ({buckets})"), { n: plan.pictures, buckets: bucketWords(plan.buckets) });
  const trains = plan.trains === "none" ? t("the whole model") : plan.trains === "lora" ? "LoRA" : plan.trains;
  const unknown = (words) => (plan.reckons ? t("reckoning …") : words);
  const memory = plan.memory_mib ? gib(plan.memory_mib) : unknown(t("memory unknown"));
  const time = plan.seconds ? fill(t("about {time}"), { time: timeWords(plan.seconds) }) : unknown(t("time unknown before a first such run"));
  return [plan.family, trains, `${plan.resolution} px`, pictures, fill(t("{n} steps"), { n: plan.steps }), memory, time].join(" · ");
}

const gib = (mib) => `${(mib / 1024).toFixed(1)} GiB`;

// What memory is made of, phase by phase: the reckoning of `limner.estimate`.
function drawMemory(place, plan) {
  place.hidden = !plan?.memory;
  if (place.hidden) return;
  const phases = { captions: t("Captions"), latents: t("Pictures"), training: t("Training"), saving: t("Saving"), sampling: t("Painting") };
  const parts = {
    weights: t("weights"), trained: t("what is trained"), activations: t("activations"), optimizer: t("optimiser"),
    caches: t("caches"), copies: t("copies"), slack: t("slack"),
  };
  const words = (phase) => Object.entries(phase.parts).map(([name, mib]) => `${parts[name] ?? name} ${gib(mib)}`).join(", ");
  const rows = plan.memory.map((phase) => h("tr", {}, h("th", {}, phases[phase.phase] ?? phase.phase), h("td", {}, gib(phase.total)), h("td", {}, words(phase))));
  if (plan.process_mib) rows.push(h("tr", {}, h("th", {}, t("Libraries")), h("td", {}, gib(plan.process_mib)), h("td", {}, t("on top of each"))));
  place.replaceChildren(h("summary", {}, t("Memory by its parts")), h("table", {}, h("tbody", {}, ...rows)));
}

function bucketWords(buckets) {
  const shown = buckets.slice(0, 3).map(([width, height, count]) => `${width}×${height}: ${count}`);
  return [...shown, ...(buckets.length > 3 ? [fill(t("{n} more sizes"), { n: buckets.length - 3 })] : [])].join(", ");
}

function timeWords(seconds) {
  if (seconds < 90) return fill(t("{s} s"), { s: seconds });
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? fill(t("{m} min"), { m: minutes }) : fill(t("{h} h {m} min"), { h: Math.floor(minutes / 60), m: minutes % 60 });
}
