// "All settings": every option of the schema. It knows no option by name; what it draws comes from the server's schema.

import { fill, get, h, sayRefused, t } from "./common.js";
import { drawField } from "./field.js";
import * as store from "./store.js";

export function mount({ element, props }) {
  const search = h("input", { type: "search", placeholder: t("Search, by any name or word"), "aria-label": t("Search the settings") });
  const count = h("span", { class: "soft" });
  const none = h("p", { class: "soft", hidden: true }, t("No setting matches."));
  const details = h("details", { class: "all-settings" }, h("summary", {}, h("h2", {}, t("All settings")), count));
  const sections = props.schema.map(drawSection);
  details.append(h("div", { class: "settings-search" }, search), none, ...sections.map((s) => s.box));
  element.querySelector(".panel").append(details);

  const draw = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const changed = sections.map((s) => s.draw(words)).reduce((a, b) => a + b, 0);
    count.textContent = changed ? fill(t("{n} changed"), { n: changed }) : "";
    none.hidden = sections.some((s) => !s.box.hidden);
  };
  search.addEventListener("input", draw);
  store.listen(draw);
  window.addEventListener("limner:setting", ({ detail }) => {
    details.open = true;
    search.value = "";
    draw();
    sections.forEach((s) => s.show(detail.path));
  });
  // go("new-run", {values}) fills the form, as from another run's config; {set} sets some values and leaves the others
  window.addEventListener("limner:new-run", ({ detail }) => {
    if (detail.values) store.replace(detail.values, "", true);
    for (const [path, text] of Object.entries(detail.set ?? {})) store.set(path, text);
  });
  get("api/settings")
    .catch((refused) => (sayRefused(refused), { defaults: {} }))
    .then(({ defaults }) => store.start(props.schema, defaults));
}

// Unfold the setting `path` and put the cursor there.
export const showSetting = (path) => window.dispatchEvent(new CustomEvent("limner:setting", { detail: { path } }));

function drawSection(section) {
  const fields = section.options.map((option) => drawField({ ...option, section: section.name }, store));
  const folded = h("details", { class: "advanced" }, h("summary", {}, t("Advanced")));
  const basic = h("div", { class: "fields" }, fields.filter((f) => !f.option.advanced).map((f) => f.box));
  folded.append(h("div", { class: "fields" }, fields.filter((f) => f.option.advanced).map((f) => f.box)));
  const box = h("section", { class: "setting-section" }, h("h3", {}, section.name, h("span", { class: "soft" }, section.help)), basic, folded);
  const draw = (words) => {
    fields.forEach((f) => f.draw(words));
    const seen = fields.filter((f) => !f.box.hidden);
    const advanced = seen.filter((f) => f.option.advanced);
    folded.hidden = !advanced.length;
    if (words.length || advanced.some((f) => f.isWrong())) folded.open = true;
    box.hidden = !seen.length;
    return seen.filter((f) => f.isChanged()).length;
  };
  const show = (path) => {
    const field = fields.find((f) => f.option.path === path && !f.box.hidden);
    if (!field) return;
    if (field.option.advanced) folded.open = true;
    field.input.scrollIntoView({ block: "center" });
    field.input.focus();
  };
  return { box, draw, show };
}
