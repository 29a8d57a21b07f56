/** @file Download of all annotations. Importing goes through opening.js, like every file. */

import { announce, button, input, message, select, showError } from "./dom.js";
import { annotations, download } from "./export.js";
import { say } from "./strings.js";

/** @typedef {import("./app.js").App} App */

/** @param {App} app */
export function attachFile(app) {
  const { work } = app;
  const refresh = () => {
    button("export").disabled = !work.photos.some(({ history }) => history.present.objects.length);
  };
  work.addEventListener("photos", refresh);
  work.addEventListener("state", refresh);
  refresh();

  button("export").onclick = async () => {
    const format = select("format").value === "labelme" ? "labelme" : "coco";
    const withPhotos = input("with-photos").checked;
    announce(say.exporting);
    try {
      const { blob, name } = await annotations(work.photos, format, withPhotos);
      download(blob, name);
      const missing = withPhotos ? work.photos.filter((photo) => !photo.blob).length : 0;
      message(say.downloaded(name) + (missing ? say.missingExport(missing) : ""));
    } catch (error) {
      showError(error);
    }
  };
}
