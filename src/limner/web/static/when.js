// The conditions of options: atoms joined by "and", these by "or"; the same grammar as `holds` in config/fields.py.

// What counts as not set, beside nothing, by the kind of input.
const UNSET = { switch: (text) => text === "false", list: (text) => text === "[]", number: (text) => text === "off" || Number(text) === 0 };

// Whether a condition holds; `textOf(path)` is the text in effect of an option, `inputOf(path)` its kind of input.
export function holds(when, textOf, inputOf) {
  return !when || when.split(" or ").some((way) => way.split(" and ").every((atom) => isMet(atom, textOf, inputOf)));
}

function isMet(atom, textOf, inputOf) {
  const negated = atom.startsWith("not ");
  const [path, word] = (negated ? atom.slice(4) : atom).split(" = ");
  const text = textOf(path);
  const isUnset = UNSET[inputOf(path)] ?? ((other) => other === "off");
  const met = word ? text === word : text !== "" && !isUnset(text);
  return met !== negated;
}
