// A dialog over the page: what is behind it can't be reached, Escape closes it, and the focus goes back where it was.

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
