// A run's samples: a grid of steps and prompts, and a slider over two steps of one prompt.
import { fill, h, t, url } from "./common.js";
import { keep } from "./keep.js";

const MANY = 60; // more than these are drawn only when they come into sight

// parse(["step-00000020_01.png"]): [{name, step: 20, prompt: "01"}]
export const parse = (names) =>
  names.map((name) => {
    const [, step, prompt] = name.match(/^step-(\d+)_(\d+)\.png$/);
    return { name, step: Number(step), prompt };
  });

export const sampleUrl = (run, name, width) =>
  url(`api/runs/${encodeURIComponent(run)}/samples/${name}${width ? `?w=${width}` : ""}`);

// samples(): {element, show(runId, {names, prompts})}
export function samples() {
  const grid = h("div", { class: "samples", tabIndex: 0, role: "region", "aria-label": t("Samples by step and prompt") });
  const slider = beforeAfter();
  const element = h("div", { class: "all-samples" }, slider.element, grid);
  let shown = "";
  let isMany = false;
  let rows = new Map();

  function show(run, { names, prompts }) {
    const all = parse(names);
    const numbers = [...new Set(all.map((s) => s.prompt))].sort();
    const shape = JSON.stringify([run, numbers, prompts]);
    if (shape !== shown) {
      shown = shape;
      rows = new Map();
      const texts = numbers.map((n) => prompts[n] ?? fill(t("prompt {n}"), { n: Number(n) + 1 }));
      grid.style.setProperty("--prompts", numbers.length);
      grid.replaceChildren(h("div", { class: "row head" }, h("span", {}, t("step")), texts.map((text) => h("span", { title: text }, text))));
    }
    isMany = all.length > MANY;
    grid.classList.toggle("many", isMany);
    const byStep = new Map();
    for (const sample of all) byStep.set(sample.step, { ...byStep.get(sample.step), [sample.prompt]: sample });
    for (const step of rows.keys()) if (!byStep.has(step)) drop(step);
    for (const step of [...byStep.keys()].sort((a, b) => a - b)) {
      const key = Object.keys(byStep.get(step)).join();
      if (rows.get(step)?.key === key) continue;
      drop(step);
      const row = drawRow(run, step, numbers, byStep.get(step), prompts);
      row.key = key;
      rows.set(step, row);
      const below = [...rows.keys()].filter((other) => other < step).sort((a, b) => b - a)[0];
      if (below === undefined) grid.append(row);
      else rows.get(below).before(row);
    }
    slider.show(run, all, prompts);
  }

  function drop(step) {
    rows.get(step)?.remove();
    rows.delete(step);
  }

  function drawRow(run, step, numbers, samples, prompts) {
    return h(
      "div",
      { class: "row" },
      h("span", {}, String(step)),
      numbers.map((n) => {
        const sample = samples[n];
        if (!sample) return h("span", {});
        const label = fill(t("step {step}: {prompt}"), { step, prompt: prompts[n] ?? n });
        return h(
          "button",
          { "aria-label": label, title: t("Look closer"), onclick: () => slider.look(sample) },
          h("img", { loading: isMany ? "lazy" : "eager", alt: "", src: sampleUrl(run, sample.name, 256) }),
        );
      }),
    );
  }

  return { element, show };
}

function beforeAfter() {
  const prompt = h("select", { "aria-label": t("Prompt"), onchange: () => draw() });
  const before = h("select", { "aria-label": t("Step before"), onchange: () => draw() });
  const after = h("select", { "aria-label": t("Step after"), onchange: () => ((follows = false), draw()) });
  const left = h("img", { class: "left" });
  const right = h("img", {});
  const range = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": t("Before or after"), oninput: () => cut() });
  const stage = h("div", { class: "stage" }, right, left, range);
  const chosen = h("div", { class: "filters" }, prompt, h("label", {}, t("before"), " ", before), h("label", {}, t("after"), " ", after));
  const element = h("div", { class: "before-after" }, chosen, stage);
  let run = null;
  let all = [];
  let follows = true; // the newest step, until somebody chooses another

  function show(ofRun, samples, prompts) {
    if (ofRun !== run) follows = true;
    const fresh = ofRun !== run;
    run = ofRun;
    all = samples;
    element.hidden = samples.length === 0;
    const numbers = [...new Set(samples.map((s) => s.prompt))].sort();
    const steps = [...new Set(samples.map((s) => s.step))].sort((a, b) => a - b);
    options(prompt, numbers.map((n) => [n, prompts[n] ?? fill(t("prompt {n}"), { n: Number(n) + 1 })]), fresh ? numbers[0] : null);
    options(before, steps.map((s) => [s, s]), fresh ? steps[0] : null);
    options(after, steps.map((s) => [s, s]), follows ? steps.at(-1) : null);
    draw();
  }

  function options(select, pairs, wanted) {
    const value = String(wanted ?? select.value);
    keep(select, pairs, () => pairs.map(([v, label]) => h("option", { value: String(v) }, String(label))));
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0; // what was chosen is gone, or these are the first there are
  }

  function draw() {
    for (const [image, select, word] of [[left, before, t("before")], [right, after, t("after")]]) {
      const found = all.find((s) => s.prompt === prompt.value && String(s.step) === select.value);
      image.alt = `${word}: ${select.value}`;
      if (found) keepSource(image, sampleUrl(run, found.name));
      else image.removeAttribute("src");
    }
    cut();
  }

  function cut() {
    left.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    stage.style.setProperty("--cut", `${range.value}%`);
  }

  function look(sample) {
    follows = false;
    prompt.value = sample.prompt;
    after.value = String(sample.step);
    draw();
    element.scrollIntoView({ block: "nearest", behavior: "smooth" });
    range.focus({ preventScroll: true });
  }

  return { element, show, look };
}

function keepSource(image, source) {
  if (image.src !== source) image.src = source;
}
