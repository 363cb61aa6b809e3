// Editing many captions: what to do, a look at what would change, and only then the writing.
import { fill, h, post, Refused, t } from "./common.js";
import { showDialog } from "./dialog.js";

// Each kind's words and fields: name -> [label, what to draw]. The server checks them again.
const kinds = () => {
  const separator = [t("Separator"), "short"];
  return {
    add: [t("Add tags"), { tags: [t("Tags"), "text"], place: [t("Where"), "place"], separator }],
    remove: [t("Remove tags"), { tags: [t("Tags"), "text"], separator }],
    rename: [t("Rename a tag"), { tag: [t("Tag"), "text"], to: [t("New name"), "text"], separator }],
    replace: [t("Replace text"), { find: [t("Find"), "text"], by: [t("Put instead"), "text"], whole_words: [t("Whole words only"), "tick"], ignore_case: [t("Ignore capitals"), "tick"] }],
    set: [t("Set the caption"), { text: [t("Caption"), "text"] }],
    affix: [t("Put text before or behind"), { text: [t("Text, spaces as typed"), "text"], place: [t("Where"), "place"] }],
    tidy: [t("Tidy tags (no doubles)"), { sort: [t("Sort them"), "tick"], separator }],
  };
};
// What an entry of the journal was: an edit made here, or the work of a tool.
export const kindWords = (kind) => {
  const others = {
    "put-away": t("Put away"), tag: t("Tags by a tagger"), caption: t("Captions by a model"), caption_by_server: t("Captions by a server"),
    "group pictures": t("Group pictures by shape"), balance: t("Balance repeats"),
    "to kohya's folders": t("Make kohya's folders"), "from kohya's folders": t("Make a plain folder of kohya's"),
  };
  return others[kind] ?? kinds()[kind]?.[0] ?? kind;
};

// {element, enable(number of chosen pictures)}. `choice()` says which pictures; `written(answer, said)` is told what was done.
export function editBar({ choice, written, putAway }) {
  const kind = h("select", { "aria-label": t("What to do"), onchange: draw }, Object.entries(kinds()).map(([name, [label]]) => h("option", { value: name }, label)));
  const fields = h("span", { class: "dataset-fields" });
  const look = h("button", { type: "submit", class: "primary" }, t("Preview"));
  const away = h("button", { type: "button", class: "danger", title: t("Moves them and their captions into .limner-removed in this folder. It can be undone."), onclick: putAway }, t("Put away"));
  const fault = h("p", { class: "dataset-fault", role: "alert" });
  const element = h("form", { class: "dataset-edit", onsubmit: preview }, kind, fields, look, away, fault);

  function field(name, [label, type]) {
    if (type === "tick") return h("label", {}, h("input", { type: "checkbox", name }), label);
    if (type === "place")
      return h("label", {}, label, h("select", { name }, h("option", { value: "front" }, t("at the front")), h("option", { value: "end", selected: kind.value === "add" }, t("at the end"))));
    return h("label", {}, label, h("input", { type: "text", name, value: type === "short" ? "," : "", size: type === "short" ? 1 : 14, autocomplete: "off" }));
  }

  function draw() {
    fields.replaceChildren(...Object.entries(kinds()[kind.value][1]).map(([name, described]) => field(name, described)));
    fault.textContent = "";
  }

  function operation() {
    const values = [...fields.querySelectorAll("[name]")].map((e) => [e.name, e.type === "checkbox" ? e.checked : e.value]);
    return { kind: kind.value, ...Object.fromEntries(values) };
  }

  async function preview(event) {
    event.preventDefault();
    fault.textContent = "";
    look.disabled = true;
    try {
      const answer = await post("api/dataset/preview", { ...choice(), operation: operation() });
      if (await confirmed(answer)) await written(await post("api/dataset/apply", { id: answer.id }), kindWords(kind.value));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      fault.textContent = error.message;
    } finally {
      look.disabled = false;
    }
  }

  draw();
  return {
    element,
    enable(number) {
      look.disabled = away.disabled = !number;
      look.textContent = number ? fill(t("Preview on {n}"), { n: number }) : t("Preview");
      look.title = number ? "" : t("Choose pictures first.");
    },
  };
}

// Shows a preview; true if it is to be written.
function confirmed(answer) {
  return new Promise((resolve) => {
    const lines = answer.changes.map((c) =>
      h("li", {}, h("b", {}, c.picture), h("del", {}, c.old || t("no caption")), h("ins", {}, c.new || t("no caption"))));
    const faults = answer.faults.map((f) => h("li", { class: "fault" }, h("b", {}, f.picture), f.message));
    const rest = answer.total - answer.changes.length;
    const write = h("button", { type: "button", class: "primary", disabled: !answer.total, onclick: () => dialog.close("yes") }, `${t("Write to files:")} ${answer.total}`);
    const dialog = h("dialog", { class: "limner dataset-preview", "aria-label": t("What would change") },
      h("h2", {}, answer.total ? t("What would change") : t("Nothing would change")),
      h("p", {}, fill(t("{n} of {all} chosen pictures get another caption. It can be undone."), { n: answer.total, all: answer.chosen })),
      h("ul", { class: "dataset-changes", tabindex: 0 }, faults, lines, rest > 0 ? h("li", {}, fill(t("+ {n} more"), { n: rest })) : null),
      h("div", { class: "folder-end" }, h("button", { type: "button", onclick: () => dialog.close("") }, t("Cancel")), write));
    showDialog(dialog, (word) => resolve(word === "yes"));
    if (answer.total) write.focus();
  });
}
