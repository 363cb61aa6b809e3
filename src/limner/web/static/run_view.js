// The right side: one run with everything that is known of it, and what can be done with it now.
import { copyText, fill, get, go, h, post, say, sayRefused, t, url } from "./common.js";
import { compare } from "./compare.js";
import { charts } from "./curves.js";
import { keep } from "./keep.js";
import { askForChange } from "./run_change.js";
import { duration, hintSentence, isLive, size, speed, stateSentence, used, when } from "./run_words.js";
import { samples } from "./samples.js";

const section = (title, ...inside) => h("section", { class: "card" }, h("h2", {}, title), inside);

// runView(id, {back, changed}): {element, look(runs, order, queue), destroy()}; look asks the server and draws; destroy is
// for when another run is shown. `changed` is called after something was done to the run, `back` to see the list again.
export function runView(id, { back, changed }) {
  const path = `api/runs/${encodeURIComponent(id)}`;
  const title = h("h2", { tabIndex: -1 });
  const status = h("p", { class: "sentence", role: "status" });
  const bar = h("progress", { "aria-label": t("Progress") });
  const facts = h("p", { class: "facts" });
  const hint = h("p", { class: "hint", hidden: true });
  const buttons = h("div", { class: "buttons" });
  const trouble = h("section", { class: "card trouble", hidden: true, role: "alert" });
  const warnings = h("section", { class: "card warnings", hidden: true });
  const drawn = charts();
  const grid = samples();
  const beside = compare(() => drawn.show(curves, otherCurves()));
  const noSamples = h("p", { class: "soft" }, t("No samples yet. They are painted from the prompts of the run."));
  const files = h("div", { class: "wide files" });
  const config = h("div", {});
  const log = h("pre", { class: "log", tabIndex: 0, "aria-label": t("End of the log") });
  const wholeLog = h("a", { href: url(`${path}/log`), download: "" }, t("Download the whole log"));
  const lossCard = section(t("Loss"), drawn.element);
  const samplesCard = section(t("Samples"), noSamples, grid.element);
  const filesCard = section(t("Files"), files);
  const logged = section(t("Log"), log, wholeLog);
  for (const card of [lossCard, samplesCard, filesCard, logged]) card.hidden = true; // until it is known what there is
  const element = h(
    "article",
    { class: "run-view" },
    h("div", { class: "card head" }, h("button", { class: "back", onclick: back }, t("← All runs")), title, status, bar, facts, hint, buttons),
    trouble,
    warnings,
    lossCard,
    samplesCard,
    filesCard,
    section(t("Compare"), beside.element),
    section(t("Config"), config),
    logged,
  );
  let run = {};
  let curves = null;
  let curvesAt = -Infinity;
  let asksToDelete = false;
  let acts = false;

  const otherCurves = () => (beside.curves() ? { name: beside.other().name, curves: beside.curves() } : null);

  async function look(runs, order, queue) {
    if (acts) return run; // what is being deleted is not asked for meanwhile
    const answer = await get(`${path}?since=${encodeURIComponent(run.version ?? "")}`);
    run = { ...run, ...answer };
    drawHead(queue.indexOf(id) + 1);
    drawTrouble();
    keep(files, run.checkpoints, drawFiles);
    keep(config, run.config, drawConfig);
    // what is still to come is said; of a run that is over, or has not begun, only what there is
    samplesCard.hidden = !run.samples.names.length && !isLive(run);
    filesCard.hidden = !run.checkpoints.length && !isLive(run);
    if (answer.log) drawLog();
    noSamples.hidden = run.samples.names.length > 0;
    grid.element.hidden = !noSamples.hidden;
    if (answer.samples) grid.show(id, run.samples);
    beside.show(run, order, runs);
    // a long past takes the server longer to draw, and a second more of it changes the picture less
    if (performance.now() - curvesAt > run.step / 20) {
      const fresh = await get(`${path}/curves?since=${encodeURIComponent(curves?.version ?? "")}`);
      curvesAt = performance.now();
      if (fresh.steps) curves = fresh;
    }
    lossCard.hidden = !curves?.steps.length && !isLive(run);
    drawn.show(curves, otherCurves());
    return run;
  }

  function drawHead(place) {
    keep(title, run.name, () => run.name);
    keep(status, [stateSentence(run, place), run.status], ([sentence]) => h("span", { class: `status ${run.status}` }, sentence));
    bar.hidden = !run.steps;
    bar.max = run.steps || 1;
    bar.value = run.step;
    const said = [
      run.steps ? fill(t("step {step} of {steps}"), run) : null,
      run.speed && isLive(run) ? speed(run.speed) : null,
      run.seconds_left !== null && run.phase === "training" ? fill(t("{time} left"), { time: duration(run.seconds_left) }) : null,
      run.validation ? fill(t("validation loss {n}"), { n: run.validation.toPrecision(4) }) : null,
      ...used(run.meter),
      run.memory ? fill(t("{n} MiB of memory"), { n: run.memory }) : null,
      [run.family, run.kind, run.device].filter(Boolean).join(" · "),
      when(run.created),
    ].filter(Boolean);
    keep(facts, said, () => said.map((fact) => h("span", {}, fact)));
    const advice = isLive(run) ? hintSentence(run.meter?.hint) : null;
    hint.hidden = !advice;
    keep(hint, advice, () => advice);
    keep(buttons, [run.actions, run.status, asksToDelete], drawButtons);
  }

  function drawButtons([actions, state]) {
    if (asksToDelete) {
      return [
        h("span", {}, t("Move this run and all its files to the trash folder?")),
        h("button", { class: "danger", onclick: () => act("delete") }, t("Move to the trash")),
        h("button", { "data-focus": "keep", onclick: () => ask(false) }, t("Keep it")),
      ];
    }
    const labels = {
      stop: state === "waiting" ? t("Take out of the queue") : t("Stop (saves first)"),
      "stop-now": t("Stop now"),
      resume: state === "queued" ? t("Start") : t("Resume"),
      sample: t("Sample now"),
      save: t("Save now"),
      change: t("Change…"),
      duplicate: t("Duplicate as new run"),
    };
    const drawn = Object.entries(labels).filter(([action]) => actions.includes(action));
    return [
      drawn.map(([action, label]) => h("button", { class: action === "resume" ? "primary" : "", onclick: () => act(action) }, label)),
      h("button", { onclick: openTensorBoard }, "TensorBoard"),
      actions.includes("delete") ? h("button", { class: "danger", onclick: () => ask(true) }, t("Delete")) : null,
    ];
  }

  function ask(whether) {
    asksToDelete = whether;
    keep(buttons, [run.actions, run.status, asksToDelete], drawButtons);
    (buttons.querySelector("[data-focus=keep]") ?? buttons.querySelector("button"))?.focus();
  }

  async function act(action) {
    if (action === "change") return askForChange(path, run.now, () => changed(action));
    const done = { sample: t("Samples are painted after this step."), save: t("The weights are saved after this step."), delete: t("The run is in the trash folder.") };
    acts = true;
    try {
      const answer = await post(`${path}/${action}`);
      if (done[action]) say(done[action]);
      if (action === "duplicate") go("new-run", { values: answer.values });
    } catch (error) {
      sayRefused(error);
    }
    acts = asksToDelete = false;
    changed(action);
  }

  async function openTensorBoard() {
    try {
      const { url: address, message } = await post("api/tensorboard");
      if (address) window.open(address, "_blank", "noopener");
      else say(message, "error"); // stays: it holds the line that opens it from another machine
    } catch (error) {
      sayRefused(error);
    }
  }

  function drawTrouble() {
    trouble.hidden = run.status !== "failed";
    const remedy = !run.actions.includes("resume")
      ? null
      : run.resume_step
        ? fill(t("Resume goes on from step {n}, where its training was saved last."), { n: run.resume_step })
        : t("Resume starts it again from the beginning; nothing was saved yet.");
    keep(trouble, [run.error, remedy], () => [
      h("h2", {}, t("What went wrong")),
      run.error.split("\n").filter(Boolean).map((line) => h("p", {}, sentence(line))),
      remedy ? h("p", { class: "soft" }, remedy) : null,
    ]);
    warnings.hidden = run.warnings.length === 0;
    keep(warnings, run.warnings, () => [h("h2", {}, t("Remarks")), h("ul", {}, run.warnings.map((text) => h("li", {}, text)))]);
  }

  function drawFiles(found) {
    if (!found.length) return h("p", { class: "soft" }, t("Nothing is saved yet."));
    const row = (file) =>
      h(
        "tr",
        {},
        h("td", {}, h("a", { href: url(`${path}/checkpoints/${encodeURIComponent(file.name)}`), download: "" }, file.is_folder ? `${file.name}.zip` : file.name)),
        h("td", {}, file.step === null ? "" : fill(t("step {n}"), { n: file.step })),
        h("td", {}, size(file.bytes)),
        h("td", {}, when(file.time)),
      );
    return h("table", {}, h("tbody", {}, found.map(row)));
  }

  function drawConfig(part) {
    const values = part.differences.map((d) => h("tr", {}, h("th", { scope: "row" }, d.field), h("td", {}, d.value || t("not given")), h("td", { class: "soft" }, d.default || t("not given"))));
    const head = h("thead", {}, h("tr", {}, [t("option"), t("here"), t("default")].map((text) => h("th", { scope: "col" }, text))));
    const said = (options) => Object.entries(options).map(([name, value]) => `${name} = ${value === "" ? t("not given") : JSON.stringify(value)}`);
    const changes = part.changes.map(({ step, options }) => h("li", {}, `${fill(t("Changed at step {n}:"), { n: step })} ${said(options).join(", ")}`));
    return [
      changes.length ? h("ul", { class: "changes" }, changes) : null,
      part.differences.length ? h("div", { class: "wide differences" }, h("table", {}, head, h("tbody", {}, values))) : h("p", {}, t("Every option is at its default.")),
      h("details", {}, h("summary", {}, t("The whole config")), h("pre", { tabIndex: 0 }, part.toml), h("a", { href: url(`${path}/config.toml`), download: "" }, t("Download config.toml"))),
      part.command ? h("details", {}, h("summary", {}, t("The command")), h("pre", { class: "command", tabIndex: 0 }, part.command), h("button", { onclick: () => copyText(part.command) }, t("Copy"))) : null,
      h("p", { class: "soft folder" }, part.folder),
    ];
  }

  function drawLog() {
    const follows = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.textContent = run.log.tail;
    logged.hidden = !run.log.tail;
    if (follows) log.scrollTop = log.scrollHeight;
  }

  return { element, look, title, run: () => run, destroy: drawn.destroy };
}

// "error: optimizer.lr: 3 is wrong. Do this." without the word error, which the heading says already. A name of an option
// stays as it is written.
function sentence(line) {
  const text = line.replace(/^error: /, "");
  const field = text.match(/^[a-z_]+\.[\w.]+(?=: )/)?.[0];
  return field ? [h("code", {}, field), text.slice(field.length)] : text.charAt(0).toUpperCase() + text.slice(1);
}
