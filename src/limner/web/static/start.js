// Starts the panels, once the words are there; says once what the server found wrong at its start.
import { get, loadWords, say, sayRefused } from "./common.js";

const ready = loadWords();

ready
  .then(() => get("api/notices"))
  .then((notices) => notices.forEach((n) => say(`${n.field}: ${n.message} ${n.remedy}`.trim(), n.severity)))
  .catch(sayRefused);

export async function start(module, parts) {
  const [panel] = await Promise.all([import(`./${module}.js`), ready]);
  panel.mount(parts);
}
