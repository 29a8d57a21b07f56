/** @file The list of the current photo's objects. */

import { announce, element, iconButton, input, make } from "./dom.js";
import { colour, css } from "./palette.js";
import { say } from "./strings.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./work.js").MaskObject} MaskObject */

/** @param {App} app */
export function attachObjects(app) {
  const { work } = app;
  const list = element("objects");

  /** @param {MaskObject} object @param {number} number @returns {HTMLLIElement} */
  const row = (object, number) => {
    const { id, label, hidden, area, prompt } = object;
    const name = label || `${say.unlabelled} (${number})`;
    const { width, height } = work.current ?? { width: 1, height: 1 };
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = css(colour(object.colour));
    const share = make("span", { className: "quiet", textContent: say.share(area / (width * height)) });
    const choose = make(
      "button",
      { type: "button", className: "swatch-button", title: say.select(name) },
      swatch,
      share,
    );
    choose.setAttribute("aria-label", `${say.select(name)}, ${share.textContent}`);
    choose.setAttribute("aria-pressed", String(work.selected === id));
    choose.onclick = () => work.selectObject(work.selected === id ? null : id);
    const text = make("input", { type: "text", value: label, placeholder: say.unlabelled, autocomplete: "off" });
    text.setAttribute("list", "labels");
    text.setAttribute("aria-label", say.rename(name));
    text.onchange = () => work.changeObject(id, { label: text.value.trim() });
    text.onkeydown = (event) => {
      if (event.key === "Enter") text.blur();
      if (event.key === "Escape") text.value = label;
    };
    const item = make("li", { className: work.selected === id ? "selected" : "" }, choose, text);
    if (prompt) item.append(iconButton("edit", say.edit(name), () => edit(object)));
    const eye = iconButton(hidden ? "eye-off" : "eye", hidden ? say.show(name) : say.hide(name), () =>
      work.changeObject(id, { hidden: !hidden }),
    );
    const bin = iconButton("bin", say.remove(name), () => {
      work.deleteObject(id);
      announce(say.removed(name));
    });
    item.append(eye, bin);
    item.dataset.object = id;
    return item;
  };

  /** @param {MaskObject} object */
  const edit = ({ id, label, prompt }) => {
    if (!prompt) return;
    input("label").value = label;
    work.commitDraft({ ...prompt, editing: id });
    element("stage").focus();
  };

  /** @type {unknown[]} */
  let drawn = [];
  const refresh = () => {
    const { objects } = work.state;
    if (drawn[0] === objects && drawn[1] === work.selected && drawn[2] === work.current) return;
    drawn = [objects, work.selected, work.current];
    // The list is made anew; the focus goes to the same control of the same object, or the next one's.
    const active =
      document.activeElement instanceof HTMLElement && list.contains(document.activeElement)
        ? document.activeElement
        : null;
    const item = active?.closest("li");
    const place = item ? [...list.children].indexOf(item) : -1;
    const control = item ? [...item.querySelectorAll("button, input")].indexOf(/** @type {Element} */ (active)) : -1;
    const id = item?.dataset.object;
    element("objects-title").textContent = say.objects(objects.length);
    element("no-objects").hidden = objects.length > 0;
    list.replaceChildren(...objects.map((object, i) => row(object, i + 1)));
    if (!active) return;
    const items = /** @type {HTMLLIElement[]} */ ([...list.children]);
    const next = items.find(({ dataset }) => dataset.object === id) ?? items[Math.min(place, items.length - 1)];
    const controls = next ? [...next.querySelectorAll("button, input")] : [];
    const target = controls[Math.min(control, controls.length - 1)] ?? element("objects-title");
    if (target instanceof HTMLElement) target.focus();
  };
  work.addEventListener("state", refresh);
  refresh();

  return {
    /** Hide all objects, or show all if they are hidden. */
    toggleAll() {
      const { objects } = work.state;
      const hidden = objects.some((object) => !object.hidden);
      if (objects.length) work.commit({ objects: objects.map((object) => ({ ...object, hidden })) });
    },
  };
}
