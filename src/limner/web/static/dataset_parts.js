// What the Dataset tab's modules share: a small picture, and the words for what is odd about one.
import { h, t, thumbnail } from "./common.js";

// The small picture itself, or words where it does not open.
export function smallPicture(path) {
  const image = h("img", { src: thumbnail(path, 256), alt: "", loading: "lazy", decoding: "async", onerror: () => image.replaceWith(h("span", { class: "mark" }, t("does not open"))) });
  return image;
}

// Asked for when drawn, not when loaded: the words of the page's language may come later than this module.
export const problemWords = () => ({
  small: t("too small"), cropped: t("strongly cropped"), "no-caption": t("without caption"),
  "no-trigger": t("without the trigger"), "long-caption": t("long caption"),
});
