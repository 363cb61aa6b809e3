// A window to choose a folder on the server, from those that the page may use.

import { get, h, t } from "./common.js";

// Resolves to the chosen folder's path, or null.
export function choosePlace(from) {
  return new Promise((resolve) => {
    const where = h("p", { class: "where" });
    const list = h("ul", { class: "places" });
    const said = h("p", { class: "mistake error", hidden: true });
    let here = "";
    const use = h("button", { type: "button", class: "primary", onclick: () => end(here) }, t("Use this folder"));
    const dialog = h(
      "dialog",
      { class: "limner limner-dialog", "aria-label": t("Choose a folder"), oncancel: () => end(null) },
      h("h3", {}, t("Choose a folder on the server")),
      where, said, list,
      h("div", { class: "row end" }, h("button", { type: "button", onclick: () => end(null) }, t("Cancel")), use),
    );
    const end = (path) => {
      dialog.close();
      dialog.remove();
      resolve(path);
    };
    const visit = async (path) => {
      const found = await get(`api/folders?path=${encodeURIComponent(path)}`).catch((refused) => {
        if (path) return visit("").then(() => null);
        said.textContent = refused.message;
        said.hidden = false;
        return null;
      });
      if (!found) return;
      here = found.path ?? "";
      where.textContent = here ? `${here} · ${t("{n} pictures").replace("{n}", found.pictures)}` : t("Allowed folders");
      use.disabled = !here;
      const up = here && h("li", {}, h("button", { type: "button", onclick: () => visit(found.parent ?? "") }, `↑ ${t("up")}`));
      const rows = found.folders.map((folder) =>
        h("li", {}, h("button", { type: "button", onclick: () => visit(folder.path) }, folder.name)));
      list.replaceChildren(...[up, ...rows].filter(Boolean));
    };
    document.body.append(dialog);
    dialog.showModal();
    visit(from);
  });
}
