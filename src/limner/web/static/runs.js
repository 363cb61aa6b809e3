import { h } from "./common.js";

export function mount({ element }) {
  element.querySelector(".panel").append(h("p", {}, "runs"));
}
