// One picture large, with the part that is trained on marked, and its caption to be edited; arrow keys go to its neighbours.
import { fill, h, post, Refused, t, thumbnail } from "./common.js";
import { problemWords } from "./dataset_parts.js";
import { showDialog } from "./dialog.js";

// `neighbour(name, step)` gives the next row or null, `current(name)` its row as it is now, `closed(name)` is told the last.
export function showDetail({ row, view, written, neighbour, current, closed }) {
  const image = h("img", { alt: "", onerror: () => (note.textContent = t("This picture does not open.")) });
  const box = h("div", { class: "crop-box" });
  const frame = h("div", { class: "crop-frame" }, image, box);
  const title = h("h2", {});
  const facts = h("p", { class: "dataset-facts" });
  const caption = h("textarea", { rows: 4, "aria-label": t("Caption"), oninput: drawState });
  const save = h("button", { type: "button", class: "primary", onclick: write }, t("Save (Ctrl+Enter)"));
  const note = h("p", { class: "dataset-note", role: "status", "aria-live": "polite" });
  const back = h("button", { type: "button", "aria-label": t("Previous picture"), onclick: () => move(-1) }, "←");
  const on = h("button", { type: "button", "aria-label": t("Next picture"), onclick: () => move(1) }, "→");
  const dialog = h("dialog", { class: "limner dataset-detail" },
    h("div", { class: "detail-head" }, back, title, on, h("button", { type: "button", "aria-label": t("Close"), onclick: () => leave() && dialog.close() }, "✕")),
    h("div", { class: "detail-body" }, frame, h("div", { class: "detail-side" }, facts, h("label", {}, t("Caption"), caption), save, note)));
  let neighbours = 0; // of two moves at once, the later counts

  const changed = () => caption.value !== row.caption;

  function drawState() {
    caption.value = caption.value.replace(/[\r\n\t]+/g, " "); // a caption is one line
    save.disabled = !changed();
  }

  function draw(next) {
    row = next;
    dialog.setAttribute("aria-label", row.name);
    title.textContent = row.name;
    title.title = row.path;
    frame.style.setProperty("--aspect", row.width / row.height);
    image.src = thumbnail(row.path, 1024);
    const [left, top, right, bottom] = row.crop;
    const share = (from, whole) => `${(100 * from) / whole}%`;
    Object.assign(box.style, { left: share(left, row.width), top: share(top, row.height), width: share(right - left, row.width), height: share(bottom - top, row.height) });
    const said = [
      `${row.width} × ${row.height} px`, `${t("bucket")} ${row.bucket.join(" × ")}`,
      row.lost > 0.005 ? fill(t("{n} % cut off"), { n: (100 * row.lost).toFixed(0) }) : t("nothing cut off"),
      row.enlarged > 1.005 ? fill(t("enlarged {n} ×"), { n: row.enlarged.toFixed(2) }) : "", row.repeats > 1 ? fill(t("{n} repeats"), { n: row.repeats }) : "",
      ...row.problems.map((p) => problemWords()[p]),
    ];
    facts.textContent = said.filter(Boolean).join(" · ");
    caption.value = row.caption;
    note.textContent = "";
    drawState();
  }

  // Whether the caption may be left: one that was changed must be saved or put back first.
  function leave() {
    if (changed()) note.textContent = t("Not saved yet: Ctrl+Enter saves it, Escape puts the old one back.");
    return !changed();
  }

  async function move(step) {
    if (!leave()) return;
    const mine = ++neighbours;
    const next = await neighbour(row.name, step);
    if (next && mine === neighbours) draw(next);
  }

  async function write() {
    if (!changed()) return;
    note.textContent = "";
    try {
      const asked = { view, pictures: [row.name], operation: { kind: "set", text: caption.value } };
      const preview = await post("api/dataset/preview", asked);
      const [change] = preview.changes;
      if (preview.faults.length) throw new Refused(422, preview.faults.map((f) => ({ field: f.picture, message: f.message, remedy: "" })));
      if (change && change.old !== row.caption) {
        row = { ...row, caption: change.old };
        note.textContent = `${t("The file was changed meanwhile; it now says:")} ${change.old}`;
        return;
      }
      if (change) await written(await post("api/dataset/apply", { id: preview.id }), t("Caption saved"));
      draw(current(row.name) ?? { ...row, caption: change?.new ?? row.caption });
      note.textContent = t("Saved.");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      note.textContent = error.message;
    }
  }

  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target !== caption) move(step);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("cancel", (event) => {
    if (!changed()) return;
    event.preventDefault(); // Escape puts the caption back first
    caption.value = row.caption;
    note.textContent = "";
    drawState();
  });
  draw(row);
  showDialog(dialog, () => closed(row.name));
  on.focus();
}
