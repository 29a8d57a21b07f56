/** @file Colours, opacity, help, and other settings that are kept for the next visit. */

import { button, dialog, element, input, make } from "./dom.js";
import { say, SHORTCUTS, TEXTS } from "./strings.js";

/** @typedef {import("./app.js").App} App */

const THEMES = /** @type {const} */ (["auto", "light", "dark"]);

/** @param {string} key @returns {string | null} null also where the browser refuses */
function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** @param {string} key @param {string} value */
function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It is forgotten when the page is closed.
  }
}

/** @param {App} app */
export function listenToSettings(app) {
  let theme = THEMES.find((name) => name === stored("theme")) ?? "auto";
  const showTheme = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = `${TEXTS.theme}: ${say.themes[theme]}`;
    button("theme").setAttribute("aria-label", label);
    button("theme").title = label;
  };
  button("theme").onclick = () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    keep("theme", theme);
    showTheme();
  };
  showTheme();

  const opacity = input("opacity");
  opacity.value = stored("opacity") ?? opacity.value;
  const showOpacity = () => app.stage.setOpacity(opacity.valueAsNumber / 100);
  opacity.oninput = () => {
    keep("opacity", opacity.value);
    showOpacity();
  };
  showOpacity();

  const single = input("single-keys");
  single.checked = stored("single-keys") !== "off";
  single.onchange = () => keep("single-keys", single.checked ? "on" : "off");

  element("help-content").replaceChildren(
    ...SHORTCUTS.map(({ title, rows }) => {
      const items = rows.map(([keys, what]) => [make("dt", { textContent: keys }), make("dd", { textContent: what })]);
      return make("section", {}, make("h3", { textContent: title }), make("dl", {}, ...items.flat()));
    }),
  );
  button("help").onclick = () => dialog("help-dialog").showModal();

  const amount = Number(stored("amount"));
  if (amount === 3 || amount === 4) app.setAmount(amount);
}
