/** @file Elements, texts, messages: what several parts of the page need. */

import { say, TEXTS } from "./strings.js";

/**
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new TypeError(`no ${kind.name} #${id} in the page`);
  return element;
}

/** @param {string} id @returns {HTMLButtonElement} */
export const button = (id) => byId(id, HTMLButtonElement);
/** @param {string} id @returns {HTMLInputElement} */
export const input = (id) => byId(id, HTMLInputElement);
/** @param {string} id @returns {HTMLElement} */
export const element = (id) => byId(id, HTMLElement);
/** @param {string} id @returns {HTMLSelectElement} */
export const select = (id) => byId(id, HTMLSelectElement);
/** @param {string} id @returns {HTMLDialogElement} */
export const dialog = (id) => byId(id, HTMLDialogElement);
/** @param {string} id @returns {HTMLProgressElement} */
export const progress = (id) => /** @type {HTMLProgressElement} */ (document.getElementById(id));

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]> & Record<string, unknown>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** @param {string} name @returns {SVGElement} an icon of the page's sprite */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * @param {string} name of an icon
 * @param {string} label for screen readers, and as a tooltip
 * @param {() => void} action
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, action) {
  const made = make("button", { type: "button", className: "icon", title: label, onclick: action }, icon(name));
  made.setAttribute("aria-label", label);
  return made;
}

/** Write the texts into the page. */
export function fillTexts() {
  /** @type {Record<string, string>} */
  const texts = TEXTS;
  for (const node of document.querySelectorAll("[data-text], [data-label], [data-placeholder]")) {
    if (!(node instanceof HTMLElement)) continue;
    const { text, label, placeholder } = node.dataset;
    if (text) node.textContent = texts[text];
    if (label) {
      node.setAttribute("aria-label", texts[label]);
      if (node instanceof HTMLButtonElement) node.title = texts[label];
    }
    if (placeholder) node.setAttribute("placeholder", texts[placeholder]);
  }
}

/** @param {string} text that a screen reader says */
export function announce(text) {
  const live = element("live");
  // The same text twice is said only if it changes in between.
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

const PATIENCE = 6000; // ms until a message that isn't an error goes away

/**
 * Show a message until it is closed; those that aren't errors go away by themselves.
 *
 * @param {string} text
 * @param {"error" | "info"} [kind]
 */
export function message(text, kind = "info") {
  const toasts = element("toasts");
  for (const old of toasts.children) if (old.querySelector("p")?.textContent === text) old.remove();
  const toast = make("div", { className: `toast ${kind}` }, make("p", { textContent: text }));
  toast.setAttribute("role", kind === "error" ? "alert" : "status");
  toast.append(iconButton("clear", say.dismiss, () => toast.remove()));
  toasts.append(toast);
  if (kind === "info") {
    const go = () => (toast.matches(":hover, :focus-within") ? setTimeout(go, 1000) : toast.remove());
    setTimeout(go, PATIENCE);
  }
}

/** @param {unknown} error @param {string} [name] of the file it is about */
export function showError(error, name = "") {
  const known = error instanceof Error && /^(Photo|Prompt|Model|Format|Store)Error$/.test(error.name);
  if (!known) console.warn(error);
  const text = error instanceof Error ? error.message : String(error);
  message(known || error instanceof RangeError ? say.failed(name, text) : say.unexpected(error), "error");
}

/**
 * @param {string} text
 * @param {string} yes text of the button that agrees
 * @returns {Promise<boolean>}
 */
export function confirmed(text, yes) {
  const box = dialog("confirm-dialog");
  element("confirm-text").textContent = text;
  button("confirm-yes").textContent = yes;
  return new Promise((resolve) => {
    let answer = false;
    button("confirm-yes").onclick = () => {
      answer = true;
      box.close();
    };
    button("confirm-no").onclick = () => box.close();
    box.onclose = () => resolve(answer);
    box.showModal();
    button("confirm-no").focus();
  });
}

/** Close buttons of dialogs, and clicks beside a dialog. */
export function listenToDialogs() {
  for (const box of document.querySelectorAll("dialog")) {
    box.querySelector("[data-close]")?.addEventListener("click", () => box.close());
    box.addEventListener("click", (event) => {
      if (event.target === box) box.close();
    });
  }
}
