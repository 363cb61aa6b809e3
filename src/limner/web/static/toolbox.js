// The page "Tools": what there is, one tool's options, what it would do, and what became of those that were used.

import { arriving, fill, get, h, post, Refused, say, sayRefused, t, url, watchWhileSeen } from "./common.js";
import { drawField } from "./field.js";
import { keepAll } from "./keep.js";
import { duration, isLive, statusWord, when } from "./run_words.js";
import { holds } from "./when.js";

export function mount({ element, props }) {
  const sections = new Map(props.schema.map((section) => [section.name, section]));
  const benches = new Map();
  const list = h("div", { class: "tool-list" });
  const used = h("ul", { class: "history" });
  const usedBox = h("section", { hidden: true }, h("h2", {}, t("Used lately")), used);
  const main = h("div", { class: "tool-main" });
  let chosen = null;

  const benchOf = (name) => {
    if (!benches.has(name)) benches.set(name, bench(sections.get(name), look));
    return benches.get(name);
  };
  const choose = (name) => {
    chosen = name;
    main.replaceChildren(benchOf(name).element);
    drawList();
  };
  const groups = [...new Set(props.schema.map((section) => section.group))];
  // where the list stands above, what was chosen would be out of sight
  const bringIntoSight = () => matchMedia("(max-width: 800px)").matches && main.scrollIntoView();
  const drawList = () =>
    list.replaceChildren(...groups.map((group) =>
      h("section", {}, h("h3", {}, group), h("ul", {}, props.schema.filter((section) => section.group === group).map(row)))));
  const row = (section) =>
      h("li", { class: section.name === chosen ? "chosen" : "" },
        h("button", { type: "button", "data-tool": section.name, "aria-current": section.name === chosen ? "true" : null, onclick: () => (choose(section.name), bringIntoSight()) }, section.title));

  async function look() {
    const all = await get("api/tools").catch((refused) => (sayRefused(refused), []));
    usedBox.hidden = all.length === 0;
    keepAll(used, all.map((job) => ({ ...job, title: sections.get(job.tool)?.title ?? job.tool })), (job) => job.id, usedRow);
    const shown = chosen && benches.get(chosen);
    if (shown) await shown.follow();
  }

  const usedRow = (job) =>
    h("li", {}, h("button", { type: "button", "data-focus": "job", onclick: () => (choose(job.tool), benches.get(job.tool).show(job.id), bringIntoSight()) },
      h("b", {}, job.title), h("span", { class: "soft" }, ` ${statusWord(job.status)} · ${when(job.began)}`)));

  element.querySelector(".panel").append(
    h("div", { class: "toolbox" }, h("nav", { class: "tool-nav", "aria-label": t("Tools") }, list, usedBox), main));
  choose(props.schema[0].name);
  // go("tools", {tool, values}) opens a tool, with some options set: its own, and those of others that may be chosen next
  arriving("tools", ({ tool, values }) => {
    if (!sections.has(tool)) return;
    choose(tool);
    for (const [path, text] of Object.entries(values ?? {})) benchOf(path.split(".")[0]).fill({ [path]: text });
  });
  watchWhileSeen(element, look, 1000);
}

// One tool: {element, follow(), show(job id), fill(values)}.
function bench(section, lookAgain) {
  let values = {};
  let findings = [];
  let job = null;
  const optionOf = (path) => section.options.find((o) => o.path === path);
  const textOf = (path) => values[path] ?? optionOf(path)?.default ?? "";
  const store = {
    set(path, text) {
      if (text === null) delete values[path];
      else values[path] = text;
      findings = findings.filter((f) => f.field !== path);
      draw();
    },
    values: () => values,
    findings: () => findings,
    applies: (option) => holds(option.when, textOf, (path) => optionOf(path)?.input),
  };
  const fields = section.options.map((option) => drawField({ ...option, section: section.name }, store));
  const folded = h("details", { class: "advanced" }, h("summary", {}, t("Advanced")),
    h("div", { class: "fields" }, fields.filter((f) => f.option.advanced).map((f) => f.box)));
  folded.hidden = !fields.some((f) => f.option.advanced);
  const looking = h("button", { type: "button", onclick: () => ask("api/tools/look", told) }, t("See what it would do"));
  const starting = h("button", { type: "button", class: "primary", onclick: () => ask("api/tools/start", started) }, t("Start"));
  const mistakes = h("ul", { class: "findings", role: "status", "aria-live": "polite", hidden: true });
  const outcome = h("div", { class: "tool-outcome", "aria-live": "polite" });
  const element = h("section", { class: "card" }, h("h2", {}, section.title), h("p", { class: "soft" }, section.help),
    h("div", { class: "fields" }, fields.filter((f) => !f.option.advanced).map((f) => f.box)), folded,
    h("div", { class: "row" }, looking, starting), mistakes, outcome);

  function draw() {
    fields.forEach((f) => f.draw([]));
    if (fields.some((f) => f.option.advanced && f.isWrong())) folded.open = true;
    const elsewhere = findings.filter((f) => !fields.some((field) => field.option.path === f.field));
    mistakes.hidden = !elsewhere.length;
    mistakes.replaceChildren(...elsewhere.map(remark));
  }

  async function ask(path, then) {
    const live = new Set(section.options.filter(store.applies).map((o) => o.path));
    const sent = Object.fromEntries(Object.entries(values).filter(([name]) => live.has(name)));
    looking.disabled = starting.disabled = true;
    try {
      then(await post(path, { tool: section.name, values: sent }));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      findings = error.findings;
    } finally {
      looking.disabled = starting.disabled = false;
      draw();
    }
  }

  function told(said) {
    findings = said.findings ?? [];
    job = null;
    outcome.replaceChildren(...(said.findings ? [] : [h("h3", {}, t("It would")), ...reported(said, null)]));
    if (!said.findings && !said.files.length && !said.lines.length && !said.remarks.length) outcome.append(h("p", {}, t("Nothing would change.")));
  }

  function started(said) {
    findings = [];
    job = said.job;
    lookAgain();
  }

  let drawn = "";
  async function follow() {
    if (!job) return;
    const asked = job;
    const now = await get(`api/tools/${encodeURIComponent(job)}`).catch((refused) => (sayRefused(refused), null));
    if (!now || asked !== job) return;
    if (now.report.findings && !findings.length) {
      findings = now.report.findings;
      draw();
    }
    const key = JSON.stringify([now.id, now.status, now.progress, now.log, isLive(now) ? Math.floor(now.seconds) : 0]);
    if (key === drawn) return;
    drawn = key;
    outcome.replaceChildren(...progress(now), ...reported(now.report, now.id), ...logOf(now));
  }

  const show = (id) => {
    job = id;
    drawn = "";
    follow();
  };
  const put = (given) => {
    values = { ...values, ...given };
    draw();
  };
  draw();
  return { element, follow, show, fill: put };
}

function progress(job) {
  const [done, total] = job.progress;
  const state = h("p", {}, h("b", {}, statusWord(job.status)), ` · ${duration(job.seconds)}`);
  if (!isLive(job)) return job.status === "failed" ? [state, h("p", { class: "mistake error" }, job.error)] : [state];
  const stop = h("button", { type: "button", onclick: () => post("api/tools/stop", { job: job.id }).then(() => say(t("Asked to stop.")), sayRefused) }, t("Stop"));
  const bar = h("progress", { max: String(total || 1), ...(total ? { value: String(done) } : {}), "aria-label": t("Progress") });
  const count = total ? fill(t("{done} of {total}"), { done, total }) : "";
  return [state, h("div", { class: "row" }, bar, h("span", { class: "soft" }, count), stop)];
}

const remark = (finding) => h("li", { class: finding.severity }, h("b", {}, finding.field), ` ${finding.message} ${finding.remedy}`.trimEnd());

// What a report says: remarks, files (to be fetched, once they are there), text.
function reported(report, job) {
  const out = [];
  if (report.remarks?.length) out.push(h("ul", { class: "findings" }, report.remarks.map(remark)));
  const address = (i) => url(`api/tools/${encodeURIComponent(job)}/files/${i}`);
  const isThere = (i) => job && report.fetchable?.[i]; // a folder is not, nor what was moved since
  const pictures = (report.files ?? []).map((path, i) => [path, i]).filter(([path, i]) => isThere(i) && path.endsWith(".preview.png"));
  out.push(...pictures.map(([path, i]) => h("img", { class: "tool-picture", src: address(i), alt: path.split(/[/\\]/).pop() })));
  if (report.files?.length) {
    const shown = report.files.slice(0, 20);
    out.push(h("p", {}, h("b", {}, job ? t("Written:") : t("To be written:"))), h("ul", { class: "tool-files" }, shown.map((path, i) => h("li", {}, isThere(i) ? h("a", { href: address(i), download: "" }, path) : h("code", {}, path)))));
    if (report.files.length > shown.length) out.push(h("p", { class: "soft" }, fill(t("and {n} more"), { n: report.files.length - shown.length })));
  }
  if (report.lines?.length) out.push(h("pre", { tabindex: "0" }, report.lines.join("\n")));
  return out;
}

function logOf(job) {
  if (!job.log || job.status === "done") return [];
  return [h("details", { open: job.status === "failed" }, h("summary", {}, t("Log")), h("pre", { tabindex: "0" }, job.log))];
}
