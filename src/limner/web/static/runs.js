// The page "Runs": the list, the chosen run beside it, and looking at the server again and again.
import { arriving, get, go, h, post, Refused, say, sayRefused, t, watchWhileSeen } from "./common.js";
import { runList } from "./run_list.js";
import { runView } from "./run_view.js";
import { isLive } from "./run_words.js";

const LIST_MILLISECONDS = 2000;
const RUN_MILLISECONDS = 1000;
const QUIET_TURNS = 5; // a run that nothing happens to is looked at less often

export function mount({ element }) {
  const runs = new Map();
  let order = [];
  let queue = [];
  let version = "";
  let view = null;
  let chosen = null;
  let turns = 0;

  const list = runList((id) => choose(id, true), reorder);
  const gone = h("p", { class: "gone", role: "alert", hidden: true });
  const right = h("div", { class: "right" });
  const empty = h(
    "div",
    { class: "empty", hidden: true },
    h("p", {}, t("No runs yet. Give Limner some pictures, and their training shows here.")),
    h("button", { type: "button", class: "primary", onclick: () => go("new-run") }, t("Make a new run")),
  );
  const page = h("div", { class: "runs" }, gone, empty, list.element, right);
  element.querySelector(".panel").append(page);

  function choose(id, asked = false) {
    if (id === chosen) {
      if (asked) page.classList.toggle("chosen", Boolean(id));
      return;
    }
    chosen = id;
    page.classList.toggle("chosen", Boolean(id));
    nameInAddress(id);
    view?.destroy();
    view = id ? runView(id, { back: () => page.classList.remove("chosen"), changed }) : null;
    right.replaceChildren(...(view ? [view.element] : [h("p", { class: "soft" }, t("Choose a run to see it."))]));
    draw();
    if (asked && view) lookAtRun(true).then(() => view?.title.focus());
    else lookAtRun(true);
  }

  // The address names the chosen run while this tab is open, so that a reload comes back to it.
  function nameInAddress(id) {
    history.replaceState(null, "", location.pathname + location.search + (id ? `#run=${encodeURIComponent(id)}` : ""));
  }

  const draw = () => list.show(runs, order, queue, chosen);

  // The wished order is shown at once, and then the server's, be it that or the former one.
  async function reorder(ids) {
    list.show(runs, order, ids, chosen);
    try {
      ({ queue } = await post("api/queue", { order: ids }));
      say(t("The queue's order was changed."));
    } catch (error) {
      sayRefused(error);
    }
    draw();
  }

  async function lookAtList() {
    const answer = await answered(() => get(`api/runs?since=${encodeURIComponent(version)}`));
    if (!answer) return;
    version = answer.version;
    for (const [id, run] of Object.entries(answer.runs)) runs.set(id, run);
    if (answer.order) order = answer.order;
    for (const id of runs.keys()) if (answer.order && !answer.order.includes(id)) runs.delete(id);
    queue = answer.queue;
    empty.hidden = order.length > 0;
    list.element.hidden = right.hidden = !empty.hidden;
    if (!chosen && order.length && !matchMedia("(max-width: 800px)").matches) choose(order[0]);
    draw();
  }

  async function lookAtRun(now = false) {
    const looked = view;
    if (!looked) return;
    const run = looked.run();
    const lively = !run.status || isLive(run) || run.status === "waiting";
    turns = now || lively ? 0 : (turns + 1) % QUIET_TURNS;
    if (turns !== 0) return;
    await answered(() =>
      looked.look(runs, order, queue).catch((error) => {
        if (error.status !== 422) throw error;
        if (looked === view) choose(null); // it was deleted, perhaps by somebody else
      }),
    );
  }

  // What the server says; undefined, with a word at the top, where it does not. The next turn asks again.
  async function answered(ask) {
    try {
      const answer = await ask();
      gone.hidden = true;
      return answer;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      gone.hidden = false;
      gone.textContent = error.status === 0 ? t("The server does not answer. Runs go on without it; this page looks again by itself.") : error.message;
      return undefined;
    }
  }

  async function changed(action) {
    if (action === "delete") choose(null);
    await lookAtList();
    await lookAtRun(true);
  }

  const fromHash = () => decodeURIComponent(location.hash.match(/^#run=([^&]+)/)?.[1] ?? "") || null;
  right.append(h("p", { class: "soft" }, t("Choose a run to see it.")));
  if (fromHash()) choose(fromHash());
  arriving("runs", (detail) => detail.run && choose(detail.run, true));
  window.addEventListener("hashchange", () => fromHash() && choose(fromHash()));
  document.addEventListener("click", ({ target }) => {
    const tab = target.closest?.("[role=tab]");
    if (tab) nameInAddress(tab.id.startsWith("tab-runs") ? chosen : null);
  });
  watchWhileSeen(page, lookAtList, LIST_MILLISECONDS);
  watchWhileSeen(page, lookAtRun, RUN_MILLISECONDS);
}
