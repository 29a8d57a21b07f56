/** @file Pictures of the selected object or the mask in progress: cut-out, mask, outline, clipboard. */

import { announce, button, element, input, message, showError } from "./dom.js";
import { copyPng, cutOut, download, maskPng, maskSvg } from "./export.js";
import { say } from "./strings.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./export.js").Shape} Shape */
/** @typedef {{ mask: Shape & { area: number }, name: string, title: string }} Target */

/** @param {App} app */
export function attachKeep(app) {
  const { work, drafting } = app;
  const ids = ["keep-cut", "keep-copy", "keep-mask", "keep-svg"];

  const refresh = () => {
    const selected = work.selectedObject;
    const possible = app.photo !== null && (selected !== null || drafting.prediction !== null);
    for (const id of ids) button(id).disabled = !possible;
    const what = selected ? say.theObject(selected.label || say.unlabelled) : say.theMask;
    element("keep-what").textContent = possible ? say.keep(what) : say.keepNothing;
  };
  work.addEventListener("state", refresh);
  drafting.addEventListener("masks", refresh);
  app.addEventListener("photo", refresh);
  refresh();

  /** @returns {Promise<Target | null>} */
  const target = async () => {
    const { selectedObject: selected, current } = work;
    const stem = (current?.name ?? "photo").replace(/\.[^.]*$/, "");
    if (selected) {
      const label = selected.label.replace(/[^\p{L}\p{N}_-]+/gu, "_");
      return { mask: selected, name: label ? `${stem}_${label}` : stem, title: selected.label || say.unlabelled };
    }
    const mask = await drafting.exact;
    if (!mask?.area) {
      message(say.emptyMask, "error");
      return null;
    }
    return { mask, name: stem, title: input("label").value.trim() || stem };
  };

  /**
   * @param {string} id
   * @param {(target: Target, photo: import("./types.js").Photo) => Promise<{ blob: Blob, suffix: string }>} write
   */
  const onClick = (id, write) => {
    button(id).onclick = async () => {
      const { photo } = app;
      if (!photo) return;
      try {
        const found = await target();
        if (!found) return;
        announce(say.writing);
        const { blob, suffix } = await write(found, photo);
        const name = found.name + suffix;
        download(blob, name);
        announce(say.downloaded(name));
      } catch (error) {
        showError(error);
      }
    };
  };
  onClick("keep-cut", async ({ mask }, photo) => ({
    blob: await cutOut(photo, mask, input("keep-crop").checked),
    suffix: "_cutout.png",
  }));
  onClick("keep-mask", async ({ mask }, { width, height }) => ({
    blob: await maskPng(mask, width, height),
    suffix: "_mask.png",
  }));
  onClick("keep-svg", async ({ mask, title }, { width, height }) => ({
    blob: maskSvg(mask, width, height, title),
    suffix: ".svg",
  }));
  button("keep-copy").onclick = async () => {
    const { photo } = app;
    if (!photo) return;
    const picture = target().then((found) => {
      if (!found) throw new DOMException("", "AbortError");
      return cutOut(photo, found.mask, input("keep-crop").checked);
    });
    picture.catch(() => {}); // told below
    try {
      await copyPng(picture);
      message(say.copied);
    } catch (error) {
      console.warn(error);
      if (!(error instanceof DOMException && error.name === "AbortError")) message(say.notCopied, "error");
    }
  };
}
