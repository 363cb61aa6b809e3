// The pictures of a new run: a place to drop them on, what is wrong with each, and their captions to edit.

import { fill, h, post, Refused, sayRefused, t, thumbnail, url } from "./common.js";
import { isConfiguration, load } from "./importing.js";
import * as store from "./store.js";

const AT_ONCE = 3;
const CAPTION = /\.(txt|caption)$/i;
const OURS = /[/\\]pictures[/\\]([0-9a-f]{16,64})$/;

export function pictures() {
  const status = h("p", { class: "soft", role: "status" });
  const refused = h("ul", { class: "mistake error", hidden: true });
  const grid = h("div", { class: "thumbnails" });
  const chooser = h("input", {
    type: "file", multiple: true, class: "unseen", accept: ".png,.jpg,.jpeg,.webp,.bmp,.txt,.caption,.zip", "aria-label": t("Choose pictures from this computer"),
    onchange: () => upload([...chooser.files]).finally(() => (chooser.value = "")),
  });
  const drop = h(
    "label",
    { class: "drop" },
    chooser,
    h("strong", {}, t("Drop pictures here")),
    h("span", { class: "soft" }, t("or a folder, or a zip of them, or click to choose. Captions (.txt) may come along.")),
  );
  const element = h("div", {}, drop, status, refused, grid);

  // the whole page takes what is dropped, so that a near miss does not open the picture in the browser
  let depth = 0;
  const light = (on) => drop.classList.toggle("over", on);
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  const isSeen = () => element.offsetParent !== null;
  window.addEventListener("dragenter", (event) => isFiles(event) && isSeen() && (depth++, light(true)));
  window.addEventListener("dragleave", (event) => isFiles(event) && isSeen() && (--depth || light(false)));
  window.addEventListener("dragover", (event) => isFiles(event) && isSeen() && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!isFiles(event) || !isSeen()) return;
    event.preventDefault();
    light(false);
    depth = 0;
    const [first, second] = event.dataTransfer.files;
    if (first && !second && isConfiguration(first.name)) load(first);
    else upload(filesOf(event.dataTransfer));
  });

  function upload(files) {
    const sending = sendAll(files);
    store.during(sending);
    return sending;
  }

  async function sendAll(given) {
    const files = await given;
    if (!files.length) return;
    const token = OURS.exec(store.values()["data.path"] ?? "")?.[1] ?? newToken();
    const renamed = new Map(); // a caption follows its picture, whatever that is called on the server
    const mistakes = [];
    let done = 0;
    let path = null;
    const say = () => (status.textContent = fill(t("Uploading: {done} of {all}"), { done, all: files.length }));
    const send = async (file) => {
      const stem = file.name.replace(/\.[^.]*$/, "");
      const key = `${file.inside ?? ""}/${stem}`;
      const name = CAPTION.test(file.name) && renamed.has(key) ? renamed.get(key) + file.name.slice(stem.length) : file.name;
      try {
        const answer = await sendFile(file, name, token);
        path = answer.path;
        if (!CAPTION.test(name) && answer.saved.length === 1) renamed.set(key, answer.saved[0].replace(/\.[^.]*$/, ""));
        mistakes.push(...answer.refused);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        mistakes.push(...error.findings);
      }
      done += 1;
      say();
    };
    say();
    for (const part of [files.filter((f) => !CAPTION.test(f.name)), files.filter((f) => CAPTION.test(f.name))]) {
      const pending = [...part];
      await Promise.all(Array.from({ length: AT_ONCE }, async () => {
        while (pending.length) await send(pending.shift());
      }));
    }
    refused.hidden = !mistakes.length;
    refused.replaceChildren(...mistakes.slice(0, 20).map((f) => h("li", {}, `${f.field} ${f.message} ${f.remedy}`)));
    status.textContent = "";
    asked = null;
    if (path) store.set("data.path", path);
  }

  let asked = null;
  let timer = null;
  store.listen(() => {
    const about = Object.fromEntries(Object.entries(store.sent()).filter(([name]) => name.startsWith("data.") && name !== "data.trigger"));
    const key = JSON.stringify(about);
    for (const caption of grid.querySelectorAll("textarea")) caption.placeholder = placeholder();
    if (key === asked) return;
    asked = key;
    clearTimeout(timer);
    timer = setTimeout(() => list(about, key), 300);
  });

  async function list(about, key) {
    const found = about["data.path"] ? await post("api/pictures/list", { values: about }).catch(sayRefused) : null;
    if (key !== asked) return; // another folder was chosen meanwhile
    drop.classList.toggle("small", Boolean(found?.total));
    grid.replaceChildren(...(found ? [...found.broken.map(brokenTile), ...found.pictures.map((p) => tile(p, about))] : []));
    const more = found ? found.total - found.pictures.length : 0;
    const words = [
      found?.total > 0 && fill(t("{n} pictures"), { n: found.total }),
      found?.num_broken && fill(t("{n} cannot be used"), { n: found.num_broken }),
      more > 0 && fill(t("{n} more are not shown"), { n: more }),
    ];
    status.textContent = words.filter(Boolean).join(" · ");
  }
  return element;
}

const placeholder = () => store.values()["data.trigger"] || t("no caption");

function tile(picture, about) {
  const caption = h("textarea", { rows: "2", "aria-label": fill(t("Caption of {name}"), { name: picture.name }), placeholder: placeholder() });
  caption.value = picture.caption;
  caption.addEventListener("change", async () => {
    try {
      const kept = await post("api/caption", { values: about, path: picture.path, text: caption.value });
      caption.value = kept.caption;
      caption.classList.add("kept");
      store.check();
    } catch (error) {
      sayRefused(error);
    }
  });
  const source = thumbnail(picture.path, 256);
  return h(
    "figure",
    { title: picture.name },
    h("img", { src: source, alt: picture.caption || picture.name, loading: "lazy", decoding: "async" }),
    h("figcaption", { class: "soft" }, `${picture.name} · ${picture.width}×${picture.height}`),
    caption,
  );
}

const brokenTile = (finding) =>
  h("figure", { class: "broken", title: finding.name }, h("div", { class: "cross", "aria-hidden": "true" }, "✕"), h("figcaption", {}, finding.name), h("p", { class: "mistake error" }, finding.message));

async function sendFile(file, name, token) {
  const query = new URLSearchParams({ token, name, inside: file.inside ?? "", size: file.size });
  const send = (body) => fetch(url(`api/upload?${query}`), { method: "POST", body, credentials: "same-origin" }).catch(() => null);
  // what a server says that does not take the whole of a file, the browser may not hear: so ask once more, without the file
  const answer = (await send(file)) ?? (await send(null));
  if (answer?.ok) return answer.json();
  const said = await answer?.json().catch(() => null);
  throw new Refused(answer?.status ?? 0, said?.findings ?? [{ field: name, message: t("could not be uploaded."), remedy: t("Try again."), severity: "error" }]);
}

const newToken = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");

// The files of a drop, those inside dropped folders too; `inside` says in which. The name of a single folder says nothing,
// unless it is one of kohya's, with repeats.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const above = entries.length === 1 && !/^\d+_/.test(entries[0].name) ? `/${entries[0].name}/` : "/";
  return (await Promise.all(entries.map((entry) => filesIn(entry, above)))).flat().filter((file) => !file.name.startsWith("."));
}

async function filesIn(entry, above) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [Object.assign(file, { inside: entry.fullPath.slice(above.length, -file.name.length - 1) })];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map((inner) => filesIn(inner, above)))).flat();
}
