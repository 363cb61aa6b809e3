// The dialog that tells a running run what to do otherwise from its next step on.
import { h, post, Refused, say, t } from "./common.js";
import { showDialog } from "./dialog.js";

// askForChange(path, now, changed): `now` is what holds, as typed, prompts as a list; only what was edited is sent.
export function askForChange(path, now, changed) {
  const number = (name) => h("input", { type: "text", inputmode: "decimal", spellcheck: "false", value: now[name] });
  const rate = number("optimizer.lr");
  const steps = number("train.steps");
  const every = number("sample.every_steps");
  every.placeholder = t("not given");
  const prompts = h("textarea", { rows: "4", spellcheck: "false" }, now["sample.prompts"].join("\n"));
  const shown = prompts.value;
  const trouble = h("p", { class: "wrong", role: "alert", hidden: true });
  const field = (label, input) => h("label", {}, h("span", {}, label), input);
  const apply = h("button", { type: "submit", class: "primary" }, t("Change from the next step on"));
  const form = h("form", { method: "dialog", onsubmit: submit },
    h("h2", {}, t("Change this run")),
    h("div", { class: "change-numbers" }, field(t("Learning rate"), rate), field(t("Steps"), steps), field(t("Paint every so many steps"), every)),
    field(t("Prompts, one a line"), prompts),
    h("p", { class: "soft" }, t("The schedule follows the new number of steps. A resumed run repeats its changes. More options: limner runs change.")),
    trouble,
    h("div", { class: "folder-end" }, h("button", { type: "button", onclick: () => dialog.close() }, t("Cancel")), apply));
  const dialog = h("dialog", { class: "limner change-dialog", "aria-label": t("Change this run") }, form);

  function edited() {
    const typed = { "optimizer.lr": rate.value.trim(), "train.steps": steps.value.trim(), "sample.every_steps": every.value.trim() };
    const options = Object.fromEntries(Object.entries(typed).filter(([name, text]) => text !== now[name]));
    const lines = prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (prompts.value !== shown) options["sample.prompts"] = JSON.stringify(lines);
    return options;
  }

  async function submit(event) {
    event.preventDefault();
    const options = edited();
    if (!Object.keys(options).length) return dialog.close();
    apply.disabled = true;
    try {
      await post(`${path}/change`, { options });
      say(t("It holds from the next step on."));
      dialog.close("yes");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
    apply.disabled = false;
  }

  showDialog(dialog, (word) => word === "yes" && changed());
}
