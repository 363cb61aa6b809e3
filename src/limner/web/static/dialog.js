// A dialog over the page: what is behind it can't be reached, Escape closes it, and the focus goes back where it was.

import { h, t } from "./common.js";

// Shows what is inside under a title and over a button that closes it; returns what closes it.
export function dialog(title, ...inside) {
  const close = () => box.close();
  const box = h("dialog", { class: "limner limner-dialog", "aria-label": title }, h("h2", {}, title), inside, h("div", { class: "row end" }, h("button", { type: "button", onclick: close }, t("Close"))));
  showDialog(box);
  return close;
}

// Shows a <dialog> built with h(); once it is closed it is gone, and `ended` is told the word it was closed with ("" for Escape).
export function showDialog(dialog, ended = () => {}) {
  dialog.addEventListener("close", () => {
    dialog.remove();
    ended(dialog.returnValue);
  });
  // Gradio narrows the stylesheet's @media rules to what lies in there
  (document.querySelector(".gradio-container .contain") ?? document.body).append(dialog);
  dialog.showModal();
}
