// The tab "Dataset": a folder's pictures with their captions, filtered, chosen and edited; everything written can be undone.
import { fill, get, go, h, post, say, sayRefused, t } from "./common.js";
import { showAlike } from "./dataset_alike.js";
import { showDetail } from "./dataset_detail.js";
import { editBar, kindWords } from "./dataset_edit.js";
import { problemWords, smallPicture } from "./dataset_parts.js";
import { chooseFolder } from "./folders.js";

const PAGE = 100;
const CAPTIONERS = ["tag", "caption", "caption_by_server"];
const KEPT = "limner.dataset"; // where this browser keeps which folder it looked at

export function mount({ element }) {
  const panel = element.querySelector(".panel");
  const state = {
    view: kept(), filter: { tags: [], text: "", problem: "", bucket: "" }, // what is looked at
    rows: [], answer: null, chosen: new Set(), all: false, last: null, // what there is, and what is chosen of it
  };
  let turn = 0; // answers that come after a newer question are dropped

  const elsewhere = () => ["broken", "alike"].includes(state.filter.problem); // shown in place of the grid

  // --- asking ---------------------------------------------------------------------------------------------------------

  const query = (more = {}) => {
    const { tags, ...filter } = state.filter;
    if (elsewhere()) filter.problem = "";
    const asked = new URLSearchParams({ ...state.view, ...filter, ...more });
    for (const tag of tags) asked.append("tag", tag);
    return asked;
  };

  async function look({ keep = false } = {}) {
    if (!state.view["data.path"]) return draw();
    const mine = ++turn;
    const limit = keep ? Math.min(500, Math.max(PAGE, state.rows.length)) : PAGE;
    main.setAttribute("aria-busy", "true");
    try {
      const answer = await get(`api/dataset?${query({ limit })}`);
      if (mine !== turn) return;
      state.answer = answer;
      state.rows = answer.pictures;
      state.view["data.path"] = answer.path;
      keepView(state.view);
      draw();
    } catch (error) {
      if (mine !== turn) return;
      if (!state.answer) state.view["data.path"] = "";
      draw();
      sayRefused(error);
    } finally {
      main.removeAttribute("aria-busy");
    }
  }

  async function more() {
    const mine = turn;
    const answer = await get(`api/dataset?${query({ offset: state.rows.length, limit: PAGE })}`);
    if (mine !== turn || answer.offset !== state.rows.length) return;
    state.rows.push(...answer.pictures);
    grid.append(...answer.pictures.map(card));
    drawEnd();
  }

  const filterBy = (change) => {
    Object.assign(state.filter, change);
    chooseNone();
    look();
  };

  // `open` is the folder's path; other options stay as they are.
  function open(path) {
    if (path !== state.view["data.path"]) {
      state.view["data.path"] = path;
      state.answer = null;
      state.filter = { tags: [], text: "", problem: "", bucket: "" };
      find.value = "";
      chooseNone();
    }
    look();
  }

  // --- choosing -------------------------------------------------------------------------------------------------------

  function chooseNone() {
    state.chosen.clear();
    state.all = false;
    state.last = null;
  }

  function choose(name, on, range) {
    state.all = false;
    const names = state.rows.map((row) => row.name);
    const [from, to] = [names.indexOf(range ? state.last : name), names.indexOf(name)];
    for (const n of names.slice(...(from < 0 ? [to, to + 1] : [Math.min(from, to), Math.max(from, to) + 1])))
      on ? state.chosen.add(n) : state.chosen.delete(n);
    state.last = name;
    drawChosen();
  }

  async function chooseAll() {
    const { names } = await get(`api/dataset/names?${query()}`);
    state.chosen = new Set(names);
    state.all = true;
    drawChosen();
  }

  // Which pictures an edit is about: by filter where all are chosen, since there may be very many.
  const choice = () => ({ view: state.view, ...(state.all ? { filter: state.filter } : { pictures: [...state.chosen] }) });

  // After something was written: say it, name what was refused, look again.
  async function written(answer, said) {
    if (answer.refused.length)
      say([t("These were left alone:"), ...answer.refused.map((r) => `${r.picture}: ${r.message}`)].join("\n"), "error");
    if (answer.changed || !answer.refused.length) say(`${said} (${answer.changed})`);
    await look({ keep: true });
  }

  async function turnBack(which) {
    const entry = state.answer?.[which];
    if (!entry) return;
    try {
      const answer = await post(`api/dataset/${which}`, { view: state.view });
      await written(answer, `${which === "undo" ? t("Undone") : t("Done again")}: ${kindWords(entry.kind)}`);
    } catch (error) {
      sayRefused(error);
    }
  }

  async function putAway(names) {
    try {
      await written(await post("api/dataset/remove", { view: state.view, pictures: names }), t("Put away"));
      for (const name of names) state.chosen.delete(name);
      drawChosen();
      return true;
    } catch (error) {
      sayRefused(error);
      return false;
    }
  }

  // --- drawing --------------------------------------------------------------------------------------------------------

  const pathText = h("span", { class: "dataset-path" });
  const undo = h("button", { type: "button", onclick: () => turnBack("undo") }, t("Undo"));
  const redo = h("button", { type: "button", onclick: () => turnBack("redo") }, t("Redo"));
  const train = h("button", { type: "button", class: "primary", onclick: () => go("new-run", { set: { "data.path": state.view["data.path"] } }) }, t("Train on this folder"));
  const caption = h("button", { type: "button", onclick: () => go("tools", { tool: "tag", values: Object.fromEntries(CAPTIONERS.map((name) => [`${name}.path`, state.view["data.path"]])) }) }, t("Caption …"));
  const pick = async () => {
    const path = await chooseFolder({ start: state.view["data.path"] });
    if (path) open(path);
  };
  const option = (name, label, attributes) => {
    const field = h("input", { value: state.view[name] ?? "", ...attributes, onchange: () => {
      if (field.value.trim()) state.view[name] = field.value.trim();
      else delete state.view[name];
      look();
    } });
    return h("label", {}, label, field);
  };
  const resolution = option("data.resolution", t("Resolution (px)"), { type: "text", inputmode: "numeric", size: 6 });
  const step = option("data.bucket_step_px", t("Bucket step (px)"), { type: "text", inputmode: "numeric", size: 6 });
  const top = h("div", { class: "dataset-top" },
    h("div", { class: "dataset-where" }, h("button", { type: "button", onclick: pick }, t("Choose a folder")), pathText, caption, train),
    h("div", { class: "dataset-options" },
      resolution, step,
      option("data.trigger", t("Trigger"), { type: "text", size: 12 }),
      option("model.base", t("Base model"), { type: "text", size: 16, placeholder: "pocket" }),
      h("span", { class: "dataset-undo" }, undo, redo)));

  const find = h("input", { type: "search", "aria-label": t("Find in names and captions"), placeholder: t("Find in names and captions"), oninput: () => {
    clearTimeout(find.timer);
    find.timer = setTimeout(() => filterBy({ text: find.value }), 250);
  } });
  const problems = h("div", { class: "dataset-chips", role: "group", "aria-label": t("Problems") });
  const tags = h("div", { class: "dataset-chips dataset-tags", role: "group", "aria-label": t("Tags") });
  const buckets = h("table", { class: "dataset-buckets" });
  const side = h("aside", { class: "dataset-side" }, find, problems,
    h("details", { open: innerWidth > 700 }, h("summary", {}, t("Tags")), tags),
    h("details", {}, h("summary", {}, t("Buckets")), buckets));

  const count = h("span", { role: "status", "aria-live": "polite" });
  const all = h("button", { type: "button", onclick: () => chooseAll().catch(sayRefused) });
  const none = h("button", { type: "button", onclick: () => (chooseNone(), drawChosen()) }, t("Choose none"));
  const edit = editBar({ choice, written, putAway: () => putAway([...state.chosen]) });
  const grid = h("ul", { class: "dataset-grid" });
  const end = h("button", { type: "button", class: "dataset-more", onclick: () => more().catch(sayRefused) }, t("Show more"));
  const other = h("div", { class: "dataset-other" });
  const main = h("div", { class: "dataset-main" },
    h("div", { class: "dataset-choice" }, count, all, none), edit.element, grid, end, other);
  const body = h("div", { class: "dataset-body" }, side, main);
  const empty = h("div", { class: "dataset-empty" },
    h("p", {}, t("Look at a folder of pictures: captions, crops, tags, and what is wrong.")),
    h("button", { type: "button", class: "primary", onclick: pick }, t("Choose a folder")));
  panel.append(empty, top, body);
  new IntersectionObserver((seen) => seen[0].isIntersecting && !end.hidden && more().catch(sayRefused), { rootMargin: "400px" }).observe(end);

  const chip = (label, number, on, onclick) =>
    h("button", { type: "button", class: "chip", "aria-pressed": String(on), onclick }, label, " ", h("b", {}, String(number)));

  function draw() {
    const answer = state.answer;
    empty.hidden = Boolean(answer);
    top.hidden = body.hidden = !answer;
    if (!answer) return;
    pathText.textContent = answer.path;
    pathText.title = answer.path;
    for (const [button, entry, word] of [[undo, answer.undo, t("Undo")], [redo, answer.redo, t("Redo")]]) {
      button.disabled = !entry;
      button.textContent = entry ? `${word}: ${kindWords(entry.kind)} (${entry.files})` : word;
      button.title = entry ? entry.detail : "";
    }
    resolution.lastChild.placeholder = answer.resolution_px; // what holds where nothing is typed
    step.lastChild.placeholder = answer.bucket_step_px;
    drawSide(answer);
    for (const part of [grid, end, edit.element, main.firstChild]) part.hidden = elsewhere();
    other.hidden = !elsewhere();
    other.replaceChildren();
    if (state.filter.problem === "alike") return showAlike(other, { view: state.view, putAway, open: (row) => detail(row) });
    if (state.filter.problem === "broken") return other.append(brokenList(answer));
    grid.replaceChildren(...state.rows.map(card));
    drawEnd();
    drawChosen();
  }

  function drawEnd() {
    end.hidden = state.rows.length >= state.answer.matching;
  }

  function drawSide(answer) {
    const { problem, tags: on, bucket } = state.filter;
    const counts = { broken: answer.num_broken, ...answer.problems };
    problems.replaceChildren(
      ...Object.entries({ broken: t("broken"), ...problemWords() })
        .filter(([name]) => counts[name] || problem === name)
        .map(([name, label]) => chip(label, counts[name], problem === name, () => filterBy({ problem: problem === name ? "" : name }))),
      h("button", { type: "button", class: "chip", "aria-pressed": String(problem === "alike"), onclick: () => filterBy({ problem: problem === "alike" ? "" : "alike" }) }, t("nearly the same")));
    const known = new Set(on.map((tag) => tag.toLowerCase()));
    tags.replaceChildren(
      ...answer.tags.map(({ tag, count: n }) => chip(tag, n, known.has(tag.toLowerCase()), () =>
        filterBy({ tags: known.has(tag.toLowerCase()) ? on.filter((o) => o.toLowerCase() !== tag.toLowerCase()) : [...on, tag] }))),
      answer.more_tags ? h("span", {}, `+ ${answer.more_tags}`) : "",
      // a tag that is filtered by but that no picture has any more must still be there to be let go
      ...on.filter((tag) => !answer.tags.some((a) => a.tag.toLowerCase() === tag.toLowerCase()))
        .map((tag) => chip(tag, 0, true, () => filterBy({ tags: on.filter((o) => o !== tag) }))));
    const most = Math.max(1, ...answer.buckets.map((b) => b.pictures));
    buckets.replaceChildren(
      h("thead", {}, h("tr", {}, ...[t("Size"), t("Pictures"), t("Shown")].map((word) => h("th", { scope: "col" }, word)))),
      h("tbody", {}, ...answer.buckets.map((b) => {
        const name = b.bucket.join("x");
        const pictures = h("td", {}, String(b.pictures));
        pictures.style.setProperty("--part", `${(100 * b.pictures) / most}%`);
        return h("tr", {}, h("td", {}, h("button", { type: "button", class: "chip", "aria-pressed": String(bucket === name), onclick: () => filterBy({ bucket: bucket === name ? "" : name }) }, b.bucket.join(" × "))),
          pictures, h("td", {}, String(b.shown)));
      })));
  }

  function drawChosen() {
    const { answer } = state;
    count.textContent = fill(t("{n} chosen of {all}"), { n: state.chosen.size, all: answer.matching }) + (answer.matching < answer.total ? ` (${fill(t("{n} in the folder"), { n: answer.total })})` : "");
    all.textContent = `${t("Choose all")} ${answer.matching}`;
    all.disabled = !answer.matching || state.chosen.size === answer.matching;
    none.disabled = !state.chosen.size;
    edit.enable(state.chosen.size);
    for (const li of grid.children) {
      const on = state.chosen.has(li.dataset.name);
      li.classList.toggle("chosen", on);
      li.querySelector("input").checked = on;
    }
  }

  function card(row) {
    const box = h("input", { type: "checkbox", "aria-label": `${t("Choose")} ${row.name}`, checked: state.chosen.has(row.name), onclick: (event) => choose(row.name, box.checked, event.shiftKey) });
    const onclick = (event) => {
      if (event.shiftKey || event.ctrlKey || event.metaKey) choose(row.name, event.shiftKey || !state.chosen.has(row.name), event.shiftKey);
      else detail(row);
    };
    return h("li", { "data-name": row.name, class: state.chosen.has(row.name) ? "chosen" : "" },
      h("label", { class: "dataset-pick" }, box),
      h("button", { type: "button", class: "dataset-picture", "aria-label": `${t("Open")} ${row.name}`, onclick }, smallPicture(row.path)),
      h("div", { class: "dataset-marks" }, row.problems.map((p) => h("span", { class: "mark" }, problemWords()[p]))),
      h("div", { class: "dataset-caption", title: row.caption }, row.caption || h("i", {}, t("no caption"))),
      h("div", { class: "dataset-name", title: row.name }, row.name));
  }

  function brokenList(answer) {
    return h("ul", { class: "dataset-broken" }, answer.broken.map((b) =>
      h("li", {}, h("b", {}, b.name), " ", b.message, " ", h("button", { type: "button", class: "danger", onclick: () => putAway([b.name]) }, t("Put away")))));
  }

  function detail(row) {
    showDetail({
      row,
      view: state.view,
      written,
      // the picture `step` places further among those that the filter leaves, or null at an end
      neighbour: async (name, step) => {
        const index = state.rows.findIndex((r) => r.name === name) + step;
        if (index >= state.rows.length && state.rows.length < state.answer.matching) await more();
        return state.rows[index] ?? null;
      },
      current: (name) => state.rows.find((r) => r.name === name),
      closed: (name) => [...grid.children].find((li) => li.dataset.name === name)?.querySelector(".dataset-picture").focus(),
    });
  }

  panel.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.matches("input:not([type=checkbox]), textarea")) return;
    event.preventDefault();
    turnBack(event.shiftKey ? "redo" : "undo");
  });
  draw();
  look();
}

function kept() {
  try {
    const view = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    return Object.fromEntries(Object.entries(view).filter(([, value]) => typeof value === "string"));
  } catch {
    return {};
  }
}

function keepView(view) {
  localStorage.setItem(KEPT, JSON.stringify(view));
}
