/** @file The panel of the mask in progress: choice, refining, cleaning, and adding it as an object. */

import { announce, button, element, input, make, message } from "./dom.js";
import { logitsOf, shown } from "./draft.js";
import { css, DRAFT } from "./palette.js";
import { say, TEXTS } from "./strings.js";
import { EMPTY, isEmpty } from "./work.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./draft.js").Amount} Amount */

const SIDE = 72; // of a thumbnail

/** @param {App} app */
export function attachMaskPanel(app) {
  const { work, drafting } = app;
  const list = element("choice-list");
  const label = input("label");

  /** @param {number} index @returns {HTMLCanvasElement} */
  const thumbnail = (index) => {
    const { width, height } = app.photo ?? { width: 1, height: 1 };
    const scale = SIDE / Math.max(width, height);
    const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const canvas = make("canvas", { width: w, height: h });
    const context = canvas.getContext("2d");
    const mask = drafting.thumbnail(index, w, h);
    if (context && mask && app.photo) {
      context.drawImage(app.photo.bitmap, 0, 0, w, h);
      const overlay = context.getImageData(0, 0, w, h);
      mask.forEach((inside, i) => {
        for (let c = 0; c < 3; c++) {
          const value = overlay.data[4 * i + c];
          overlay.data[4 * i + c] = inside ? 0.35 * value + 0.65 * DRAFT[c] : 0.4 * value;
        }
      });
      context.putImageData(overlay, 0, 0);
    }
    return canvas;
  };

  /** Show the masks of a new prediction; only a list of the same masks keeps the focus. */
  const refresh = () => {
    const { prediction } = drafting;
    const { draft } = work.state;
    element("no-mask").hidden = prediction !== null;
    element("choices").hidden = !prediction;
    button("add").disabled = !prediction;
    button("add").textContent = draft.editing ? say.update : TEXTS.add;
    button("refine").disabled = !prediction;
    button("refine-stop").hidden = !draft.maskInput;
    if (!prediction) {
      list.replaceChildren();
      return;
    }
    const focused = list.contains(document.activeElement);
    const kind = app.model?.info.score ?? "";
    const choices = shown(drafting.amount).map((index, i) => {
      const name = say.maskNames[index];
      const score = say.score(kind, prediction.scores[index]);
      const radio = make("input", { type: "radio", name: "choice", value: String(index) });
      radio.checked = index === drafting.choice;
      radio.setAttribute("aria-label", say.choice(i + 1, name, score));
      radio.onchange = () => choose(index);
      const texts = make("span", { className: "texts" }, make("b", { textContent: `${i + 1} · ${name}` }));
      texts.append(make("span", { className: "quiet", textContent: score }));
      return make("label", { className: "choice" }, radio, thumbnail(index), texts);
    });
    list.replaceChildren(...choices);
    if (focused) list.querySelector("input:checked") instanceof HTMLElement && focusChecked();
  };
  const focusChecked = () => {
    const checked = list.querySelector("input:checked");
    if (checked instanceof HTMLElement) checked.focus();
  };

  /** @param {number} index of the four masks */
  const choose = (index) => {
    app.lastAction = say.maskNames[index];
    work.commitDraft({ choice: index }, false);
  };

  drafting.addEventListener("masks", refresh);
  work.addEventListener("state", () => {
    button("refine-stop").hidden = !work.state.draft.maskInput;
    button("add").textContent = work.state.draft.editing ? say.update : TEXTS.add;
    element("labels").replaceChildren(...work.labels.map((value) => make("option", { value })));
  });

  for (const radio of document.querySelectorAll("input[name=amount]")) {
    if (!(radio instanceof HTMLInputElement)) continue;
    radio.addEventListener("change", () => app.setAmount(/** @type {Amount} */ (Number(radio.value))));
  }

  button("refine").onclick = () => app.refine();
  button("refine-stop").onclick = () => {
    app.lastAction = TEXTS.refineStop;
    work.commitDraft({ maskInput: null, choice: null });
  };

  for (const id of ["fill-holes", "drop-islands"]) {
    input(id).onchange = () => {
      const [fillHoles, dropIslands] = ["fill-holes", "drop-islands"].map((name) => {
        const value = Math.max(0, Math.floor(input(name).valueAsNumber || 0));
        input(name).value = String(value);
        return value;
      });
      drafting.setClean({ fillHoles, dropIslands });
    };
  }

  element("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    void add();
  });

  const add = async () => {
    const { draft } = work.state;
    if (isEmpty(draft)) return;
    await drafting.settled;
    const { exact, prediction, choice } = drafting;
    if (!exact || !prediction || work.state.draft !== draft) return;
    const mask = await exact;
    if (work.state.draft !== draft) return; // the prompt changed meanwhile
    if (!mask.area) {
      message(say.emptyMask, "error");
      return;
    }
    const name = label.value.trim();
    const { objects } = work.state;
    const edited = objects.find(({ id }) => id === draft.editing);
    const more = { score: prediction.scores[choice], prompt: { ...draft, choice, editing: null } };
    const made = work.makeObject(mask, name, { ...more, ...(edited && { colour: edited.colour }) });
    const next = edited
      ? objects.map((object) => (object === edited ? { ...made, id: edited.id, hidden: false } : object))
      : [...objects, made];
    work.lastLabel = name;
    work.commit({ objects: next, draft: EMPTY });
    announce(edited ? say.replaced(name) : say.added(name));
  };

  return {
    /** @param {number} number 1 to 4, of those that are shown */
    chooseNumber(number) {
      const index = shown(drafting.amount)[number - 1];
      if (drafting.prediction && index !== undefined) choose(index);
    },
    colour: css(DRAFT),
    logits: () => (drafting.prediction ? logitsOf(drafting.prediction, drafting.choice) : null),
  };
}
