// A second run beside the chosen one: what differs in their configs, and their newest samples side by side.
import { fill, get, h, sayRefused, t } from "./common.js";
import { keep } from "./keep.js";
import { parse, sampleUrl } from "./samples.js";

// compare(changed): {element, other(), curves(), show(run, runs, samples)}; `changed()` is called when another run was chosen.
export function compare(changed) {
  const choice = h("select", { "aria-label": t("Compare with"), onchange: () => choose() });
  const differences = h("div", {});
  const pictures = h("div", { class: "pairs" });
  const element = h("div", {}, h("label", { class: "other-run" }, t("Compare with"), choice), differences, pictures);
  let run = null;
  let curves = null;
  let theirs = null;

  async function choose() {
    const other = choice.value;
    curves = theirs = null;
    if (other) {
      const path = (id) => `api/runs/${encodeURIComponent(id)}`;
      try {
        const [said, lines, full] = await Promise.all([
          get(`${path(run.id)}/compare?other=${encodeURIComponent(other)}`),
          get(`${path(other)}/curves`),
          get(path(other)),
        ]);
        if (choice.value !== other) return;
        curves = lines;
        theirs = full;
        keep(differences, [other, said.differences], () => table(said.differences, run.name, full.name));
      } catch (error) {
        choice.value = "";
        sayRefused(error);
      }
    }
    differences.hidden = pictures.hidden = !theirs;
    drawPictures();
    changed();
  }

  function show(shown, order, runs) {
    if (shown.id !== run?.id) {
      choice.value = "";
      curves = theirs = null;
      differences.hidden = pictures.hidden = true;
    }
    run = shown;
    const others = order.filter((id) => id !== shown.id).map((id) => [id, runs.get(id)?.name ?? id]);
    const value = choice.value;
    keep(choice, [shown.id, others], () => [h("option", { value: "" }, t("no other run")), others.map(([id, name]) => h("option", { value: id }, name === id ? id : `${name} (${id})`))]);
    choice.value = value;
    drawPictures();
  }

  function drawPictures() {
    if (!theirs) return;
    const sides = [run, theirs].map((r) => ({ id: r.id, name: r.name, newest: newest(r.samples.names), prompts: r.samples.prompts }));
    keep(pictures, sides, () => {
      const numbers = [...new Set(sides.flatMap((side) => Object.keys(side.newest)))].sort();
      return numbers.map((n) => h("div", { class: "pair" }, sides.map((side) => figure(side, n))));
    });
  }

  function figure(side, number) {
    const sample = side.newest[number];
    const says = sample ? fill(t("{name}, step {step}"), { name: side.name, step: sample.step }) : side.name;
    const picture = sample ? h("img", { loading: "lazy", alt: side.prompts[number] ?? "", src: sampleUrl(side.id, sample.name, 512) }) : h("span", { class: "no-sample" });
    return h("figure", {}, picture, h("figcaption", {}, says, h("br"), h("span", { class: "soft" }, side.prompts[number] ?? "")));
  }

  return { element, other: () => theirs, curves: () => curves, show };
}

// The last sample of each prompt.
const newest = (names) => Object.fromEntries(parse(names).map((sample) => [sample.prompt, sample]));

function table(rows, mine, other) {
  if (!rows.length) return h("p", {}, t("Their configs are the same."));
  return h(
    "div",
    { class: "wide differences" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, [t("option"), mine, other].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.field), h("td", {}, row.value || t("not given")), h("td", {}, row.other || t("not given"))))),
    ),
  );
}
