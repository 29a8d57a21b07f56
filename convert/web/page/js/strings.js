/** @file All texts of the page. */

/** @param {number} count @param {string} one @param {string} [many] @returns {string} */
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** @param {number} bytes @returns {string} */
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** @param {number} ms @returns {string} */
export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Texts of elements, by their `data-text`, `data-label` or `data-placeholder`. */
export const TEXTS = {
  skip: "Skip to the photo",
  title: "EdgeSAM",
  openGroup: "Open a photo",
  open: "Open photos",
  camera: "Camera",
  examples: "Examples",
  theme: "Light or dark",
  help: "Help and shortcuts",
  photoRegion: "Photo",
  tools: "Tools",
  modes: "What a click or a drag does",
  inside: "Inside",
  outside: "Outside",
  box: "Box",
  move: "Move",
  changes: "Changes",
  undo: "Undo",
  redo: "Redo",
  clear: "Clear the prompt",
  zoom: "Zoom",
  zoomIn: "Zoom in",
  zoomOut: "Zoom out",
  zoomFit: "Show the whole photo",
  opacity: "Mask opacity",
  stage: "Photo and masks",
  stageHelp:
    "Arrow keys move a crosshair, with Shift by one pixel. Enter places a point, Shift and Enter a point outside. " +
    "K sets a corner of a box. Tab leaves the photo.",
  welcomeTitle: "Cut out and annotate objects, on your own device",
  welcomeText:
    "Open a photo, click an object, and get its mask. The model runs in this browser: your photos are not uploaded.",
  welcomeHow: "You can also drop photos here, or paste one.",
  welcomeExamples: "Or try a generated scene",
  missingText: "Its annotations were imported, but a file doesn’t contain photos. Open the photo to see them.",
  dropHere: "Drop photos or annotation files",
  photos: "Open photos",
  panel: "Masks, objects and files",
  maskTitle: "Mask",
  amount: "Masks to choose from",
  noMask: "Click an object in the photo, or drag a box around it.",
  choices: "Which mask",
  refine: "Refine this mask",
  refineStop: "Stop refining",
  clean: "Clean up",
  cleanText: "Fill holes and remove separate parts that are smaller than this many pixels.",
  fillHoles: "Holes below",
  dropIslands: "Parts below",
  label: "Label",
  labelPlaceholder: "What is it? (optional)",
  add: "Add object",
  noObjects: "None yet. Add the mask to keep it as an object.",
  keepTitle: "Save as a picture",
  keepCut: "Cut-out (PNG)",
  keepCopy: "Copy cut-out",
  keepMask: "Mask (PNG)",
  keepSvg: "Outline (SVG)",
  keepCrop: "Crop the cut-out to the object",
  everythingTitle: "Everything",
  everythingText: "Find all objects without prompts, from a grid of points.",
  grid: "Points",
  limits: "Limits",
  leastScore: "Least score",
  leastStability: "Least stability",
  leastArea: "Least area in pixels",
  everything: "Find everything",
  cancel: "Cancel",
  everythingPick: "Click masks in the photo to choose or drop them.",
  selectAll: "Choose all",
  selectNone: "Choose none",
  discard: "Discard",
  fileTitle: "Annotation file",
  fileText: "All objects on all photos. edgesam_jax reads both formats for training and evaluation.",
  format: "Format",
  formatCoco: "COCO (run lengths)",
  formatLabelme: "labelme",
  withPhotos: "With the photos, in a ZIP file",
  exportFile: "Download",
  importFile: "Import",
  modelTitle: "Model",
  trust: "Nothing is uploaded: photos and labels stay on this device.",
  messages: "Messages",
  close: "Close",
  helpTitle: "Help and shortcuts",
  singleKeys: "Shortcuts of a single key",
  examplesTitle: "Example scenes",
  examplesText: "Generated pictures, like those that the bundled model learned from.",
  cameraTitle: "Take a photo",
  cameraPreview: "Camera",
  shoot: "Take the photo",
  flip: "Other camera",
  keepIt: "Keep it",
};

/** Shortcuts: keys and what they do, by group. */
export const SHORTCUTS = [
  {
    title: "Mouse",
    rows: [
      ["Click", "this belongs to the object"],
      ["Shift + click, right click", "this doesn’t belong to it"],
      ["Drag", "a box around the object"],
      ["Wheel", "zoom"],
      ["Drag with the middle button", "move the photo"],
    ],
  },
  {
    title: "Touch",
    rows: [
      ["Tap", "a point, inside or outside as chosen in the tools"],
      ["Drag", "move the photo; a box if Box is chosen"],
      ["Two fingers", "zoom and move"],
    ],
  },
  {
    title: "Keyboard, on the photo",
    rows: [
      ["Arrow keys", "move the crosshair; with Shift by one pixel"],
      ["Enter or Space", "place a point, of the chosen kind"],
      ["Shift + Enter", "place a point outside"],
      ["K, then K", "two corners of a box"],
    ],
  },
  {
    title: "Keyboard, anywhere",
    rows: [
      ["Ctrl + Z, Ctrl + Shift + Z", "undo, redo"],
      ["I, O, B, H", "inside, outside, box, move"],
      ["1, 2, 3, 4", "choose a mask"],
      ["M", "1, 3 or 4 masks to choose from"],
      ["R", "refine the mask"],
      ["A", "go to the label; Enter there adds the object"],
      ["C", "clear the prompt"],
      ["E", "find everything"],
      ["V", "show or hide all objects"],
      ["+, -, 0", "zoom in, out, show all"],
      ["[, ]", "previous, next photo"],
      ["Escape", "leave what is going on"],
      ["?", "this help"],
    ],
  },
];

/** Texts with values. */
export const say = {
  /** @param {string} shortcut */
  shortcut: (shortcut) => ` (${shortcut})`,
  parts: { runtime: "runtime", encoder: "encoder", image: "first part of the decoder", decoder: "decoder", check: "" },
  /** @param {string} part @param {number} loaded @param {number} total */
  loading: (part, loaded, total) =>
    `Loading the ${part}: ${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ""}`,
  /** @param {number} done @param {number} total */
  checking: (done, total) => `Checking the model on this device${total ? `: ${done} of ${total} prompts` : ""}`,
  starting: "Starting the model",
  /** @param {string} name */
  opening: (name) => `Opening ${name}`,
  /** @param {string} name */
  encoding: (name) => `Encoding ${name}`,
  /** @param {string} message */
  modelFailed: (message) => `The model could not be started: ${message}`,
  waitForModel: "The model is still loading. You can look at the photo until then.",
  hints: {
    inside: "Click the object. Shift-click what doesn’t belong to it, or drag a box.",
    outside: "Click what doesn’t belong to the object.",
    box: "Drag a box around the object.",
    move: "Drag to move the photo; use the wheel or two fingers to zoom.",
    touchInside: "Tap the object. Outside takes away what doesn’t belong to it; Box lets you draw one.",
    touchOutside: "Tap what doesn’t belong to the object.",
    touchMove: "Drag to move the photo; two fingers zoom.",
    corner: "K sets the opposite corner of the box; Escape leaves it.",
    everything: "Click masks to choose or drop them.",
    none: "Open a photo to begin.",
  },
  slowPreview: "No preview under the pointer: this device is too slow for it.",
  /** @param {number} encoder @param {number} decoder */
  times: (encoder, decoder) => `Encoder ${duration(encoder)}${decoder ? ` · decoder ${duration(decoder)}` : ""}`,
  maskNames: ["single", "part", "middle", "whole"],
  /** @param {string} kind @param {number} score */
  score: (kind, score) => `${kind === "iou" ? "predicted overlap" : "stability"} ${score.toFixed(2)}`,
  /** @param {number} number @param {string} name @param {string} score */
  choice: (number, name, score) => `Mask ${number}, ${name}, ${score}`,
  /** @param {number} share of the photo, 0 to 1 */
  share: (share) => (share < 0.001 ? "below 0.1 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`),
  /** @param {string} what @param {number} share @param {string} score */
  predicted: (what, share, score) => `${what}. The mask covers ${say.share(share)} of the photo, ${score}.`,
  /** @param {number} x @param {number} y @param {number} label */
  pointAt: (x, y, label) => `Point ${label ? "inside" : "outside"} at ${x}, ${y}`,
  boxDone: "Box",
  /** @param {number} x @param {number} y */
  crosshair: (x, y) => `${x}, ${y}`,
  cornerSet: "First corner of the box. Move the crosshair and press K again.",
  changed: "Changed",
  emptyMask: "The mask is empty: nothing to add. Try another point or a box.",
  nothing: "No mask",
  /** @param {number} count */
  objects: (count) => (count ? `Objects (${count})` : "Objects"),
  unlabelled: "no label",
  /** @param {string} label */
  added: (label) => `Added: ${label || "object without a label"}`,
  /** @param {string} label */
  replaced: (label) => `Changed: ${label || "object without a label"}`,
  update: "Update object",
  /** @param {string} label */
  select: (label) => `Select ${label}`,
  /** @param {string} label */
  rename: (label) => `Label of ${label}`,
  /** @param {string} label */
  hide: (label) => `Hide ${label}`,
  /** @param {string} label */
  show: (label) => `Show ${label}`,
  /** @param {string} label */
  edit: (label) => `Edit the prompt of ${label}`,
  /** @param {string} label */
  remove: (label) => `Delete ${label}`,
  /** @param {string} label */
  removed: (label) => `Deleted: ${label}. Undo brings it back.`,
  /** @param {string} what */
  keep: (what) => `Saves ${what}.`,
  keepNothing: "Make a mask, or select an object in the list.",
  theMask: "the mask in progress",
  /** @param {string} label */
  theObject: (label) => `the selected object: ${label}`,
  writing: "Writing the picture",
  copied: "The cut-out is on the clipboard.",
  notCopied: "This browser doesn’t let the page copy pictures. Use “Cut-out (PNG)” instead.",
  /** @param {string} name */
  downloaded: (name) => `Saved as ${name}`,
  /** @param {number} done @param {number} total @param {number} found */
  everythingRunning: (done, total, found) =>
    `${total ? `${done} of ${plural(total, "point")}` : "Starting"}, ${plural(found, "mask")} so far`,
  /** @param {number} found @param {number} ms */
  everythingFound: (found, ms) => `${plural(found, "mask")} in ${duration(ms)}.`,
  everythingNothing: "Nothing passed the limits. Lower them, or use more points.",
  everythingCancelled: "Cancelled",
  /** @param {number} count */
  everythingAdd: (count) => `Add ${plural(count, "object")}`,
  /** @param {boolean} chosen @param {number} left */
  everythingToggled: (chosen, left) => `${chosen ? "Chosen" : "Dropped"}. ${plural(left, "mask")} chosen.`,
  /** @param {number} count */
  photoObjects: (count) => `, ${plural(count, "object")}`,
  /** @param {string} name */
  missingTitle: (name) => `Open ${name}`,
  /** @param {string} name */
  closePhoto: (name) => `Remove ${name}`,
  /** @param {string} name @param {number} count */
  confirmRemove: (name, count) =>
    `Remove ${name}${count ? ` and its ${plural(count, "object")}` : ""} from this page? This can’t be undone.`,
  removeIt: "Remove",
  /** @param {string} name */
  photoOpened: (name) => `${name} is open.`,
  /** @param {string} name @param {number} width @param {number} height */
  sizeDiffers: (name, width, height) =>
    `${name}: its imported annotations are for ${width} x ${height} pixels, but this photo has another size. ` +
    "It was opened as a separate photo.",
  /** @param {{ objects: number, known: number, missing: number, skipped: string[] }} result */
  imported: ({ objects, known, missing, skipped }) =>
    [
      `Imported ${plural(objects, "object")}.`,
      known ? ` ${plural(known, "object")} ${known === 1 ? "was" : "were"} here already.` : "",
      missing ? ` Open ${plural(missing, "photo")} to see all of them.` : "",
      skipped.length ? ` ${plural(skipped.length, "entry", "entries")} can’t be used: ${skipped[0]}.` : "",
    ].join(""),
  /** @param {number} count */
  missingExport: (count) => ` Not in the archive: ${plural(count, "photo")} that you haven’t opened.`,
  exporting: "Writing the file",
  noCamera: "The camera can’t be used here. Choose a photo instead.",
  /** @param {string} name */
  backend: { wasm: "WebAssembly", webgpu: "WebGPU" },
  /** @param {import("./types.js").Backend} backend */
  backendLine: ({ name, threads, precision, half, check }) => {
    const how = name === "wasm" ? `WebAssembly with ${plural(threads, "thread")}` : "WebGPU";
    const { prompts, worstOverlap, logitsError, ms } = check;
    const overlap = `smallest overlap with Python’s masks ${worstOverlap.toFixed(4)}`;
    const error = `largest error of logits ${logitsError.toExponential(0)}`;
    const checked = `Checked at start on this device: ${plural(prompts, "prompt")}, ${overlap}, ${error}`;
    const numbers = half && name === "webgpu" ? "computes in float16" : precision;
    return `Runs on ${how}, ${numbers}. ${checked}, in ${duration(ms)}.`;
  },
  /** @param {import("./types.js").Backend} backend */
  runs: ({ name, threads, check }) =>
    `${name === "wasm" ? `WebAssembly, ${plural(threads, "thread")}` : "WebGPU"}: ` +
    `checked on this device, overlap ${check.worstOverlap.toFixed(3)}`,
  oneThread: "This host doesn’t allow threads, so the model runs slower than it could.",
  /** @param {string} name @param {string} reason */
  rejected: (name, reason) => `Not used: ${name} (${reason}).`,
  facts: { name: "Name", source: "Source", licence: "Licence", size: "Files", precision: "Precision" },
  modelLoading: "Loading…",
  offline: {
    checking: "Preparing to work offline…",
    /** @param {number} done @param {number} total */
    keeping: (done, total) =>
      `Keeping files for offline use: ${megabytes(done)}${total ? ` of ${megabytes(total)}` : ""}`,
    ready: "Works offline now.",
    /** @param {string} reason */
    not: (reason) => `Works without uploading, but needs its server when you load it${reason ? ` (${reason})` : ""}.`,
    update: "A newer version of this page is ready. Reload to use it.",
  },
  saved: { now: "Saved on this device", busy: "Saving…", none: "", memory: "Not saved: see the message" },
  storeFull:
    "The browser’s storage is full: new work is not saved. " +
    "Download the annotation file with the photos, then remove some photos.",
  /** @param {string} reason */
  storeFailed: (reason) =>
    `This browser can’t keep your work (${reason}). Download the annotation file before you leave.`,
  otherTab: "This page is open in another tab. Work in one of them only: the one that saves last overwrites the other.",
  restored: (/** @type {number} */ count) => `${plural(count, "photo")} from your last visit.`,
  dismiss: "Close this message",
  /** @param {string} name */
  themes: { light: "Light colours", dark: "Dark colours", auto: "Colours of the system" },
  /** @param {string} name @param {string} message */
  failed: (name, message) => (message.startsWith(name) ? message : `${name}: ${message}`),
  /** @param {unknown} error */
  unexpected: (error) => `Something went wrong: ${error instanceof Error ? error.message : String(error)}`,
  refining: "Refined the mask",
};
