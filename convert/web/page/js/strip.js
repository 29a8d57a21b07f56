/** @file The row of open photos. */

import { confirmed, element, icon, iconButton, make } from "./dom.js";
import { say } from "./strings.js";

/** @typedef {import("./app.js").App} App */

/** @param {App} app */
export function attachStrip(app) {
  const { work } = app;
  const list = element("photos");

  const refresh = () => {
    element("strip").hidden = !work.photos.length;
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.photo : undefined;
    const items = work.photos.map((photo) => {
      const count = photo.history.present.objects.length;
      const choose = make("button", { type: "button", className: "photo", title: photo.name });
      choose.dataset.photo = photo.id;
      if (photo === work.current) choose.setAttribute("aria-current", "true");
      if (photo.thumbnail) choose.append(make("img", { src: photo.thumbnail, alt: "", width: 64, height: 48 }));
      else choose.append(make("span", { className: "blank" }, icon("photo")));
      choose.append(make("span", { className: "name", textContent: photo.name }));
      choose.append(make("span", { className: "hidden", textContent: say.photoObjects(count) }));
      if (count) choose.append(badge(count));
      choose.onclick = () => void app.show(photo);
      const remove = iconButton("clear", say.closePhoto(photo.name), async () => {
        if (!(await confirmed(say.confirmRemove(photo.name, count), say.removeIt))) return;
        await app.removePhoto(photo);
        element("stage").focus();
      });
      return make("li", {}, choose, remove);
    });
    list.replaceChildren(...items);
    if (focused) [...list.querySelectorAll("button")].find(({ dataset }) => dataset.photo === focused)?.focus();
    list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  work.addEventListener("photos", refresh);
  const counts = () => work.photos.map((photo) => photo.history.present.objects.length).join();
  let shown = counts();
  work.addEventListener("state", () => {
    if (shown !== counts()) refresh(); // also of photos that aren't shown: imported objects
    shown = counts();
  });
  refresh();
}

/** @param {number} count @returns {HTMLElement} for the eye only: the button's text has it, too */
function badge(count) {
  const made = make("span", { className: "count", textContent: String(count) });
  made.setAttribute("aria-hidden", "true");
  return made;
}
