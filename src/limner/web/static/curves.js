// The charts of a run: loss (raw as a band from the lowest to the highest, smoothed as a line), learning rate, and more.
import { h, t } from "./common.js";
import { Chart } from "./chart.js";

// charts(): {element, show(curves, other), destroy()}; `other` is {name, curves} of a compared run, or null.
export function charts() {
  const loss = new Chart(t("Loss"), 260);
  const rate = new Chart(t("Learning rate"), 120);
  const norm = new Chart(t("Gradient norm"), 120);
  const memory = new Chart(t("Memory in MiB"), 120);
  const pace = new Chart(t("Images per second"), 120);
  const log = h("input", { type: "checkbox", onchange: () => draw() });
  const raw = h("input", { type: "checkbox", checked: true, onchange: () => draw() });
  const more = h("details", { ontoggle: () => draw() }, h("summary", {}, t("Gradient norm, memory and speed")), h("h3", {}, t("Gradient norm")), norm.element, h("h3", {}, t("Memory in MiB")), memory.element, h("h3", {}, t("Images per second")), pace.element);
  const none = h("p", { class: "soft" }, t("No step is finished yet."));
  const drawn = h(
    "div",
    {},
    h("div", { class: "filters" }, h("label", {}, log, " ", t("logarithmic")), h("label", {}, raw, " ", t("raw loss"))),
    loss.element,
    h("h3", {}, t("Learning rate")),
    rate.element,
    more,
  );
  const element = h("div", {}, none, drawn);
  let shown = null;

  function show(curves, other) {
    shown = [curves, other];
    draw();
  }

  function draw() {
    if (!shown) return;
    const [curves, other] = shown;
    const any = curves.steps.length > 0;
    none.hidden = any;
    drawn.hidden = !any;
    if (!any) return;
    const { steps } = curves;
    const lines = [];
    if (raw.checked) {
      lines.push({ label: t("raw"), steps, values: curves.high, colour: "--curve-raw", width: 0.75, bandBelow: true });
      lines.push({ label: "", steps, values: curves.low, colour: "--curve-raw", width: 0.75 });
    }
    lines.push({ label: t("smoothed"), steps, values: curves.smooth, colour: "--curve", width: 2.5 });
    if (curves.validation.steps.length) {
      lines.push({ label: t("validation"), steps: curves.validation.steps, values: curves.validation.loss, colour: "--curve-second", width: 2, points: true });
    }
    if (other) lines.push({ label: other.name, steps: other.curves.steps, values: other.curves.smooth, colour: "--curve-other", width: 2.5, dash: [8, 4] });
    loss.show(lines, { log: log.checked });
    const rates = Object.entries(curves.rates);
    const colours = ["--curve", "--curve-second", "--curve-other"];
    rate.show(rates.map(([name, values], i) => ({ label: name, steps, values, colour: colours[i % colours.length], width: 2 })));
    if (more.open) {
      norm.show([{ label: t("norm"), steps, values: curves.norm, colour: "--curve" }]);
      const kinds = [["memory_mib", t("computer")], ["device_mib", t("device")]].filter(([name]) => curves.memory[name]);
      memory.show(kinds.map(([name, label], i) => ({ label, steps: curves.memory.steps, values: curves.memory[name], colour: colours[i] })));
      pace.show([{ label: t("images"), steps: curves.speed.steps, values: curves.speed.images_per_second ?? [], colour: "--curve" }]);
    }
  }

  const destroy = () => [loss, rate, norm, memory, pace].forEach((chart) => chart.destroy());

  return { element, show, destroy };
}
