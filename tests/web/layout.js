// What is wrong with how the page is laid out now, as sentences: called by test_layout.py inside the page.
() => {
  const root = document.querySelector("dialog[open]") ?? document.body;
  const found = [];
  const style = (e) => getComputedStyle(e);
  const isSeen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && e.getClientRects().length > 0;
  const isShown = (e) => isSeen(e) && !e.closest("[aria-hidden=true]");
  const all = [...root.querySelectorAll("*")].filter(isShown);
  const name = (e) => {
    const words = (e.getAttribute("aria-label") || e.textContent || e.placeholder || "").trim().slice(0, 40);
    return `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") ?? ""}"> "${words}"`;
  };

  // --- nothing beside the page ---
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) {
    const wide = all.filter((e) => e.getBoundingClientRect().right > page.clientWidth + 1).slice(-3);
    found.push(`the page is ${page.scrollWidth} px wide, its window ${page.clientWidth}: ${wide.map(name)}`);
  }

  // --- nothing cut, but where an ellipsis says so ---
  const texts = all.filter((e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()));
  const isShortened = (e) => style(e).textOverflow === "ellipsis" || style(e).webkitLineClamp !== "none";
  const clips = (value) => value === "hidden" || value === "clip";
  for (const e of texts) {
    if (isShortened(e)) continue;
    const { overflowX, overflowY } = style(e);
    if (clips(overflowX) && e.scrollWidth > e.clientWidth + 1) found.push(`cut at its side: ${name(e)}`);
    if (clips(overflowY) && e.scrollHeight > e.clientHeight + 1) found.push(`cut at its foot: ${name(e)}`);
    for (let box = e.parentElement; box && box !== root; box = box.parentElement) {
      if (isShortened(box)) break;
      if (/auto|scroll/.test(style(box).overflowX)) break;
      const [inner, outer] = [e.getBoundingClientRect(), box.getBoundingClientRect()];
      if (clips(style(box).overflowX) && (inner.right > outer.right + 1 || inner.left < outer.left - 1)) found.push(`cut by ${name(box)}: ${name(e)}`);
    }
  }

  // --- nothing that can be used lies over another ---
  const USED = "a[href], button, input, select, textarea, summary, [tabindex='0'], [contenteditable]";
  const used = all.filter((e) => e.matches(USED));
  const BY_DESIGN = ".dataset-pick input"; // lies in its picture's corner
  const isStuck = (e) => e !== root && e !== document.body && (["sticky", "fixed"].includes(style(e).position) || (e.parentElement && isStuck(e.parentElement)));
  const areas = used.filter((e) => !e.matches(BY_DESIGN) && !isStuck(e)).map((e) => [e, seenPart(e)]);
  function seenPart(e) {
    let { left, top, right, bottom } = e.getBoundingClientRect();
    for (let box = e.parentElement; box && box !== page; box = box.parentElement) {
      if (style(box).overflow === "visible") continue;
      const outer = box.getBoundingClientRect();
      [left, top, right, bottom] = [Math.max(left, outer.left), Math.max(top, outer.top), Math.min(right, outer.right), Math.min(bottom, outer.bottom)];
    }
    return { left, top, right, bottom };
  }
  areas.forEach(([a, p], i) => {
    for (const [b, q] of areas.slice(i + 1)) {
      if (a.contains(b) || b.contains(a)) continue;
      const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (width > 1 && height > 1) found.push(`overlap: ${name(a)} and ${name(b)}`);
    }
  });

  // --- contrast (WCAG 2: 4.5, for large text 3) ---
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (colour) => {
    if (!known.has(colour)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(colour, [r, g, b, a / 255]);
    }
    return known.get(colour);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  // the colours that may lie behind the text of `e`: one, or those of a gradient
  function behind(e) {
    if (!e) return [[255, 255, 255]];
    const { backgroundColor, backgroundImage } = style(e);
    const own = rgba(backgroundColor);
    const base = own[3] === 1 ? [own.slice(0, 3)] : behind(e.parentElement).map((below) => over(own, below));
    const stops = backgroundImage.match(/(rgba?|color|oklab|oklch)\([^()]*\)/g) ?? [];
    return [...base, ...stops.flatMap((stop) => base.map((below) => over(rgba(stop), below)))];
  }
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  function contrast(e, colour) {
    let shown = rgba(colour);
    for (let up = e; up; up = up.parentElement) shown = [...shown.slice(0, 3), shown[3] * style(up).opacity];
    return Math.min(...behind(e).map((below) => {
      const [a, b] = [light(over(shown, below)), light(below)];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }));
  }
  const isOff = (e) => e.closest(":disabled, [aria-disabled=true]");
  function judge(e, colour, what) {
    if (isOff(e) || style(e).webkitTextFillColor === "transparent") return;
    const size = parseFloat(style(e).fontSize);
    const least = size >= 24 || (size >= 18.66 && style(e).fontWeight >= 700) ? 3 : 4.5;
    const ratio = contrast(e, colour);
    if (ratio < least) found.push(`${what} has a contrast of ${ratio.toFixed(2)}: ${name(e)}`);
  }
  texts.forEach((e) => judge(e, style(e).color, "text"));
  for (const e of all.filter((e) => e.matches("input:not([type=checkbox], [type=radio], [type=range], [type=file]), select, textarea"))) {
    judge(e, style(e).color, "typed text");
    if (e.placeholder && !e.value) judge(e, getComputedStyle(e, "::placeholder").color, "placeholder");
  }

  // --- everything that can be used has a name ---
  for (const e of used) {
    const labels = [...(e.labels ?? [])].map((label) => label.textContent).join("");
    const inside = e.matches("input, select, textarea") ? "" : e.textContent + [...e.querySelectorAll("img")].map((i) => i.alt).join("");
    const by = document.getElementById(e.getAttribute("aria-labelledby") ?? "")?.textContent ?? "";
    if (!(e.getAttribute("aria-label") || labels || by || inside || e.title).trim()) found.push(`has no name: ${name(e)}`);
  }

  // --- for the keyboard: what Tab must reach, and what it does reach from now on, with a visible focus or not ---
  const groups = new Set();
  const wanted = [...root.querySelectorAll(USED)].filter((e) => e.checkVisibility() && e.getClientRects().length && !e.disabled && e.tabIndex >= 0).filter((e) => {
    if (e.type !== "radio") return true; // of a group, Tab reaches one
    return !groups.has(e.name) && groups.add(e.name);
  });
  const reached = new Set();
  const unseen = new Set();
  const hasRing = (e) => style(e).outlineStyle !== "none" && parseFloat(style(e).outlineWidth) > 0 && rgba(style(e).outlineColor)[3] > 0.5;
  document.addEventListener("focusin", ({ target }) => {
    reached.add(target);
    if (target.tabIndex < 0) return; // only scripts put the focus there
    if (target.type === "radio") document.getElementsByName(target.name).forEach((e) => reached.add(e));
    const label = target.labels?.[0];
    if (!hasRing(target) && !(label && hasRing(label))) unseen.add(name(target));
  });
  window.keyboard = {
    stops: wanted.length,
    left: () => wanted.filter((e) => e.isConnected && !reached.has(e)).map((e) => `Tab does not reach ${name(e)}`),
    faults: () => [...window.keyboard.left(), ...[...unseen].map((e) => `its focus can't be seen: ${e}`)],
  };
  return [...new Set(found)];
}
