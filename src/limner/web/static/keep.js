// Parts of the page that are drawn anew only when what they show has changed, so that focus and scrolling stay.

// keep(element, value, draw): draw(value) gives the children; called again with an equal value it does nothing.
export function keep(element, value, draw) {
  const key = JSON.stringify(value) ?? "";
  if (element.keptKey === key) return;
  element.keptKey = key;
  const shown = draw(value);
  element.replaceChildren(...[shown].flat(Infinity).filter(Boolean));
}

// keepAll(parent, items, idOf, draw): one child an item, in order; those whose item stays equal keep their element.
export function keepAll(parent, items, idOf, draw) {
  const before = new Map([...parent.children].map((child) => [child.dataset.id, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = idOf(item);
    const key = JSON.stringify(item);
    let child = before.get(id);
    if (!child || child.keptKey !== key) {
      const fresh = draw(item);
      fresh.dataset.id = id;
      fresh.keptKey = key;
      if (child) {
        const focused = child.contains(document.activeElement) && document.activeElement.dataset.focus;
        if (place === child) place = fresh;
        child.replaceWith(fresh);
        if (focused) fresh.parentElement.querySelector(`[data-id="${CSS.escape(id)}"] [data-focus="${focused}"]`)?.focus();
      }
      child = fresh;
    }
    before.delete(id);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const gone of before.values()) gone.remove();
}
