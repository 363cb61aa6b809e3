// Pictures that look nearly the same, group by group, side by side; of each, all but one can be put away.
import { fill, get, h, sayRefused, t } from "./common.js";
import { smallPicture } from "./dataset_parts.js";

// Fills `place`, again and again until the search is done or `place` shows something else.
export async function showAlike(place, { view, putAway, open }) {
  const bar = h("progress", { "aria-label": t("Looking for pictures that are nearly the same") });
  const said = h("p", { role: "status", "aria-live": "polite" }, t("Looking …"));
  const list = h("div", { class: "alike-groups" });
  place.replaceChildren(said, bar, list);
  try {
    let answer;
    do {
      answer = await get(`api/dataset/alike?${new URLSearchParams(view)}`);
      bar.max = Math.max(1, answer.total);
      bar.value = answer.seen;
      said.textContent = fill(t("Looked at {n} of {all}"), { n: answer.seen, all: answer.total });
      if (!answer.done) await new Promise((resolve) => setTimeout(resolve, 400));
    } while (!answer.done && bar.isConnected);
    if (!bar.isConnected) return;
    bar.remove();
    said.textContent = answer.groups.length ? `${t("Groups of pictures that are nearly the same:")} ${answer.groups.length}` : t("No two pictures are nearly the same.");
    list.append(
      ...answer.groups.map((g) => groupOf(g, { putAway, open })),
      answer.broken.length ? h("ul", { class: "dataset-broken" }, answer.broken.map((b) => h("li", {}, h("b", {}, b.name), " ", b.message, " ", h("button", { type: "button", class: "danger", onclick: () => putAway([b.name]) }, t("Put away"))))) : "");
  } catch (error) {
    sayRefused(error);
  }
}

function groupOf({ pictures, copies }, { putAway, open }) {
  const same = new Set(copies.flat());
  const largest = pictures.reduce((a, b) => (b.width * b.height > a.width * a.height ? b : a));
  const rest = pictures.filter((p) => p !== largest).map((p) => p.name);
  return h("section", { class: "alike-group" },
    h("ul", {}, pictures.map((p) => h("li", {},
      h("button", { type: "button", class: "dataset-picture", "aria-label": `${t("Open")} ${p.name}`, onclick: () => open(p) }, smallPicture(p.path)),
      h("div", { class: "dataset-name", title: p.name }, p.name),
      h("div", {}, `${p.width} × ${p.height} `, same.has(p.name) ? h("span", { class: "mark" }, t("same file")) : null),
      h("div", { class: "dataset-caption", title: p.caption }, p.caption || h("i", {}, t("no caption"))),
      h("button", { type: "button", class: "danger", "aria-label": `${t("Put away")} ${p.name}`, onclick: () => putAway([p.name]) }, t("Put away"))))),
    h("button", { type: "button", onclick: () => putAway(rest) }, fill(t("Keep the largest, put away {n}"), { n: rest.length })));
}
