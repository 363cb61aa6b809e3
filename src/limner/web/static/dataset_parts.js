// What the Dataset tab's modules share: a picture's small version, and the words for what is odd about one.
import { t, url } from "./common.js";

export const thumbnail = (path, size) => url(`api/thumbnail?${new URLSearchParams({ path, size })}`);

// Asked for when drawn, not when loaded: the words of the page's language may come later than this module.
export const problemWords = () => ({
  small: t("too small"), cropped: t("strongly cropped"), "no-caption": t("without caption"),
  "no-trigger": t("without the trigger"), "long-caption": t("long caption"),
});
