/** @file Ways to open photos: chosen, dropped, pasted, from the camera, and the site's examples. */

import { byId, button, dialog, element, input, make, message, showError } from "./dom.js";
import { say } from "./strings.js";

/** @typedef {import("./work.js").Origin} Origin */
/** @typedef {(files: File[], origin: Origin) => Promise<void>} Open */
/** @typedef {{ file: string, title?: string, width?: number, height?: number }} Example */

/** @returns {string} the date and time, for names of files */
const stamp = () => new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");

/** @param {Open} open */
export function listenToOpening(open) {
  const file = input("file");
  for (const id of ["open", "welcome-open", "missing-open"]) button(id).onclick = () => file.click();
  for (const chooser of [file, input("capture"), input("import-input")]) {
    chooser.onchange = () => {
      const files = [...(chooser.files ?? [])];
      chooser.value = ""; // the same file can be chosen again
      void open(files, chooser.id === "capture" ? "camera" : "file");
    };
  }
  button("import").onclick = () => input("import-input").click();
  dropping(open);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    // Pasted pictures have no names of their own.
    const named = files.map((pasted, i) => {
      const suffix = pasted.name.match(/\.[a-z0-9]+$/i)?.[0] ?? ".png";
      return new File([pasted], `pasted-${stamp()}${i ? `-${i + 1}` : ""}${suffix}`, { type: pasted.type });
    });
    void open(named, "paste");
  });
  for (const id of ["camera", "welcome-camera"]) button(id).onclick = () => void useCamera(open);
}

/** @param {Open} open */
function dropping(open) {
  const sign = element("drop");
  let depth = 0; // of elements that the pointer has entered
  /** @param {DragEvent} event */
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;
  window.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth++;
    sign.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (hasFiles(event) && --depth <= 0) {
      depth = 0;
      sign.hidden = true;
    }
  });
  window.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  window.addEventListener("drop", (event) => {
    depth = 0;
    sign.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    void open([...(event.dataTransfer?.files ?? [])], "file");
  });
}

/** @param {Open} open */
async function useCamera(open) {
  const box = dialog("camera-dialog");
  const video = byId("video", HTMLVideoElement);
  let facing = "environment";
  /** @type {MediaStream | null} */
  let stream = null;
  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  const start = async () => {
    stop();
    const wanted = { facingMode: facing, width: { ideal: 1920 }, height: { ideal: 1080 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    video.srcObject = stream;
    await video.play();
  };
  try {
    await start();
  } catch (error) {
    stop();
    console.warn(error);
    // The system's own camera, where there is one.
    if (matchMedia("(pointer: coarse)").matches) input("capture").click();
    else message(say.noCamera, "error");
    return;
  }
  button("flip").onclick = () => {
    facing = facing === "environment" ? "user" : "environment";
    start().catch(showError);
  };
  button("shoot").onclick = () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        if (blob) void open([new File([blob], `camera-${stamp()}.jpg`, { type: "image/jpeg" })], "camera");
        box.close();
      },
      "image/jpeg",
      0.95,
    );
  };
  box.onclose = stop;
  box.showModal();
}

/**
 * Fill the lists of examples.
 *
 * @param {Open} open
 */
export async function listExamples(open) {
  const base = new URL("examples/", document.baseURI);
  /** @type {Example[]} */
  let examples = [];
  try {
    const response = await fetch(new URL("examples.json", base));
    const content = response.ok ? await response.json() : [];
    examples = Array.isArray(content) ? content : (content.examples ?? []);
  } catch (error) {
    console.warn(error); // the page works without examples
  }
  button("examples").hidden = !examples.length;
  for (const id of ["welcome-examples", "example-list"]) {
    const items = examples.map(({ file, title = file.replace(/\.[^.]*$/, "").replace(/[_-]/g, " ") }) => {
      const picture = make("img", { src: new URL(file, base).href, alt: "", width: 96, height: 96, loading: "lazy" });
      const choose = make("button", { type: "button" }, picture, make("span", { textContent: title }));
      choose.onclick = async () => {
        dialog("examples-dialog").close();
        try {
          const response = await fetch(new URL(file, base));
          if (!response.ok) throw new Error(`${file}: ${response.status}`);
          await open([new File([await response.blob()], file.replace(/^.*\//, ""))], "example");
        } catch (error) {
          showError(error, file);
        }
      };
      return make("li", {}, choose);
    });
    element(id).replaceChildren(...items);
  }
  button("examples").onclick = () => dialog("examples-dialog").showModal();
}
