// The left side: what waits, in its order, and all runs, newest first, filtered by text and state.
import { h, t, url } from "./common.js";
import { keepAll } from "./keep.js";
import { isLive, statusWord, when } from "./run_words.js";

const KINDS = {
  live: isLive,
  waiting: (run) => run.status === "waiting" || run.status === "queued",
  done: (run) => run.status === "done",
  failed: (run) => run.status === "failed",
  stopped: (run) => run.status === "stopped",
};

// runList(choose, reorder): {element, show(runs, order, queue, chosen)}; `choose(id)` is called for a click, `reorder(ids)`
// for a wish to have the queue in this order.
export function runList(choose, reorder) {
  const words = h("input", { type: "search", placeholder: t("Filter by name"), "aria-label": t("Filter by name"), oninput: () => again() });
  const kind = h(
    "select",
    { "aria-label": t("Filter by state"), onchange: () => again() },
    [["", t("all")], ["live", t("running")], ["waiting", t("waiting")], ["done", t("finished")], ["failed", t("failed")], ["stopped", t("stopped")]].map(
      ([value, label]) => h("option", { value }, label),
    ),
  );
  const queue = h("ol", { class: "queue" });
  const queueBox = h("section", { hidden: true }, h("h2", {}, t("Queue")), queue);
  const history = h("ul", { class: "history" });
  const none = h("p", { class: "soft", hidden: true }, t("No run fits the filter."));
  const element = h("nav", { class: "run-list", "aria-label": t("Runs") }, h("div", { class: "filters" }, words, kind), queueBox, history, none);
  let last = null;

  function again() {
    if (last) show(...last);
  }

  function show(runs, order, waiting, chosen) {
    last = [runs, order, waiting, chosen];
    const text = words.value.trim().toLowerCase();
    const fits = (run) => `${run.name} ${run.id}`.toLowerCase().includes(text) && (!kind.value || KINDS[kind.value](run));
    queueBox.hidden = waiting.length === 0;
    keepAll(queue, waiting.map((id, i) => ({ id, name: runs.get(id)?.name ?? id, first: i === 0, last: i === waiting.length - 1, chosen: id === chosen })),
      (entry) => entry.id, queueItem);
    const shown = order.map((id) => runs.get(id)).filter((run) => run && fits(run));
    keepAll(history, shown.map((run) => brief(run, chosen)), (entry) => entry.id, historyItem);
    none.hidden = shown.length > 0;
  }

  function queueItem(entry) {
    const move = (by) => {
      const ids = last[2].filter((id) => id !== entry.id);
      ids.splice(last[2].indexOf(entry.id) + by, 0, entry.id);
      reorder(ids);
    };
    return h(
      "li",
      { class: entry.chosen ? "chosen" : "" },
      h("button", { class: "name", "data-focus": "name", onclick: () => choose(entry.id) }, entry.name),
      h("button", { "data-focus": "up", "aria-label": t("Earlier"), title: t("Earlier"), disabled: entry.first, onclick: () => move(-1) }, "↑"),
      h("button", { "data-focus": "down", "aria-label": t("Later"), title: t("Later"), disabled: entry.last, onclick: () => move(1) }, "↓"),
    );
  }

  function historyItem(entry) {
    return h(
      "li",
      {},
      h(
        "button",
        { class: "item", "data-focus": "item", "aria-current": entry.chosen ? "true" : null, onclick: () => choose(entry.id) },
        entry.sample
          ? h("img", { loading: "lazy", alt: "", src: url(`api/runs/${encodeURIComponent(entry.id)}/samples/${entry.sample}?w=128`) })
          : h("span", { class: "no-sample" }),
        h(
          "span",
          { class: "what" },
          h("strong", {}, entry.name),
          h("span", { class: `status ${entry.status}` }, statusWord(entry.status), entry.percent === null ? "" : ` · ${entry.percent} %`),
          h("small", {}, [when(entry.created), entry.family, entry.kind].filter(Boolean).join(" · ")),
        ),
      ),
    );
  }

  return { element, show };
}

// Only what an item shows, so that it is drawn anew only when that changes.
function brief(run, chosen) {
  const percent = run.steps && run.status !== "done" ? Math.floor((100 * run.step) / run.steps) : null;
  const { id, name, status, created, family, kind, sample } = run;
  return { id, name, status, created, family, kind, sample, percent, chosen: id === chosen };
}
