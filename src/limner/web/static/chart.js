// Curves over steps, drawn by uPlot (vendor/uplot), in the page's colours.
import { h, t, url } from "./common.js";

let loading = null;
function library() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: url("studio/vendor/uplot/uPlot.min.css") }));
    document.head.append(h("script", { src: url("studio/vendor/uplot/uPlot.iife.min.js"), onload: () => resolve(window.uPlot), onerror: reject }));
  });
  return loading;
}

function plain(value) {
  if (value === null || value === undefined) return "–";
  return value !== 0 && Math.abs(value) < 0.001 ? String(Number(value.toPrecision(3)).toExponential()) : String(Number(value.toPrecision(4)));
}

// One chart. show(lines, {log}): lines are [{label, steps, values, colour, width, dash, points, fillTo}]; colours are CSS
// variables' names. One without a label is not in the legend. What has the same lines as before is only given new data.
export class Chart {
  constructor(label, height) {
    this.label = label;
    this.height = height;
    this.element = h("div", { class: "chart", role: "img", "aria-label": label });
    this.shape = "";
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.element);
  }

  // uPlot listens to the window: what is not destroyed stays for as long as the page.
  destroy() {
    this.sizes.disconnect();
    this.plot?.destroy();
    this.plot = null;
  }

  async show(lines, { log = false } = {}) {
    const uPlot = await library();
    if (!this.element.isConnected || !this.element.clientWidth) return;
    const data = uPlot.join(lines.map((line) => [line.steps, line.values]));
    const dark = document.body.classList.contains("dark");
    const shape = JSON.stringify([lines.map((l) => [l.label, l.colour]), log, dark]);
    const last = lines.filter((l) => l.label).map((l) => `${l.label} ${plain(l.values.at(-1))}`).join(", ");
    this.element.setAttribute("aria-label", `${this.label}: ${last}`);
    if (shape === this.shape) {
      this.plot.setData(data);
      return;
    }
    this.shape = shape;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(lines, log), data, this.element);
  }

  options(lines, log) {
    const style = getComputedStyle(this.element);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui" };
    return {
      width: this.element.clientWidth,
      height: this.height,
      scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
      axes: [
        { ...axis, size: 34 },
        { ...axis, size: 62, values: (_, marks) => marks.map((mark) => (mark === null ? "" : plain(mark))) },
      ],
      series: [
        { label: t("step") },
        ...lines.map((line) => ({
          label: line.label,
          class: line.label ? "named" : "unnamed",
          stroke: colour(line.colour),
          width: line.width ?? 1.5,
          dash: line.dash,
          points: { show: line.points ?? false },
          spanGaps: true,
          value: (_, value) => plain(value),
        })),
      ],
      bands: lines.flatMap((line, i) => (line.bandBelow ? [{ series: [i + 1, i + 2], fill: `${colour(line.colour)}40` }] : [])),
      legend: { live: true },
      cursor: { y: false },
    };
  }

  fit() {
    const width = this.element.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }
}
