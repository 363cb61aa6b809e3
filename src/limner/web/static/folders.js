// Choosing a folder, or with `files` a file too, on the server, among the allowed ones: chooseFolder({start}) gives its path,
// or null.
import { get, h, Refused, t } from "./common.js";
import { showDialog } from "./dialog.js";

export function chooseFolder({ start, files = false }) {
  const title = files ? t("Choose a folder or a file") : t("Choose a folder");
  return new Promise((resolve) => {
    let here = null;
    const where = h("input", { type: "text", class: "folder-path", "aria-label": t("Path"), spellcheck: "false" });
    const list = h("ul", { class: "folder-list" });
    const note = h("p", { class: "folder-note", role: "status", "aria-live": "polite" });
    const up = h("button", { type: "button", onclick: () => open(here?.parent ?? "", here?.path) }, t("Up"));
    const use = h("button", { type: "submit", class: "primary" }, t("Use this folder"));
    const form = h("form", { method: "dialog", onsubmit: submit },
      h("h2", {}, title),
      h("div", { class: "folder-bar" }, up, where, h("button", { type: "button", onclick: () => open(where.value) }, t("Go"))),
      list, note,
      h("div", { class: "folder-end" }, h("button", { type: "button", onclick: () => dialog.close() }, t("Cancel")), use));
    const dialog = h("dialog", { class: "limner folder-dialog", "aria-label": title }, form);

    function submit(event) {
      event.preventDefault();
      if (where.value !== (here?.path ?? "")) return open(where.value); // Enter in the field goes there first
      if (here?.path) dialog.close(here.path);
    }

    // Show what is in `path` ("" shows the allowed folders); `from` is the one to stand on, where we came out of.
    async function open(path, from = null) {
      note.textContent = "";
      try {
        here = await get(`api/folders?${new URLSearchParams(path ? { path } : {})}`);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        note.textContent = error.findings.map((f) => `${f.message} ${f.remedy}`.trim()).join(" ");
        if (here === null && path) return open("");
        return;
      }
      where.value = here.path ?? "";
      up.disabled = !here.path;
      use.disabled = !here.path;
      note.textContent = here.path ? whatIsIn(here) : "";
      const rows = here.folders.map((f) =>
        h("li", {}, h("button", { type: "button", onclick: () => open(f.path), "data-path": f.path }, here.path ? f.name : f.path)));
      const inside = files ? here.files : [];
      rows.push(...inside.map((f) => h("li", {}, h("button", { type: "button", class: "file", onclick: () => dialog.close(f.path), "data-path": f.path }, f.name))));
      list.replaceChildren(...rows);
      (rows.map((row) => row.firstChild).find((b) => b.dataset.path === from) ?? rows[0]?.firstChild ?? use).focus();
    }

    list.addEventListener("keydown", (event) => {
      if (event.key === "Backspace" && !up.disabled) up.click();
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const buttons = [...list.querySelectorAll("button")];
      buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    });
    showDialog(dialog, (path) => resolve(path || null));
    open(start);
  });
}

function whatIsIn({ folders, pictures, models, complete }) {
  const says = [[pictures, t("{n} pictures")], [models, t("{n} model files")]].filter(([n]) => n).map(([n, words]) => words.replace("{n}", n));
  if (!folders.length) says.push(t("No folders in here."));
  if (!complete) says.push(t("There is more in here than is shown."));
  return says.join(" · ");
}
