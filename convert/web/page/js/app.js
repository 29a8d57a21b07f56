/** @file Start-up and wiring: the parts of the page, and what they share. */

import { listenToActions } from "./actions.js";
import { button, element, fillTexts, listenToDialogs, message, showError } from "./dom.js";
import { Stage } from "./canvas.js";
import { pathOf } from "./contours.js";
import { Drafting } from "./draft.js";
import { importAnnotations } from "./import.js";
import { busy, loadModel } from "./loading.js";
import { listExamples, listenToOpening } from "./opening.js";
import { colour } from "./palette.js";
import { attachEverything } from "./panel_everything.js";
import { attachFile } from "./panel_file.js";
import { attachKeep } from "./panel_keep.js";
import { attachMaskPanel } from "./panel_mask.js";
import { attachObjects } from "./panel_objects.js";
import { Photos, thumbnailOf } from "./photos.js";
import { Saving } from "./saving.js";
import { listenToSettings } from "./settings.js";
import { say } from "./strings.js";
import { attachStrip } from "./strip.js";
import { newId, Work } from "./work.js";

/** @typedef {import("./types.js").Model} Model */
/** @typedef {import("./types.js").Photo} Photo */
/** @typedef {import("./types.js").Embedding} Embedding */
/** @typedef {import("./work.js").PhotoEntry} PhotoEntry */
/** @typedef {import("./work.js").Origin} Origin */
/** @typedef {import("./draft.js").Amount} Amount */

/** What the parts of the page share. Events: "photo" (another photo, or its embedding), "model" (it is loaded). */
export class App extends EventTarget {
  constructor() {
    super();
    this.work = new Work();
    this.saving = new Saving(this.work);
    this.drafting = new Drafting();
    this.photos = new Photos();
    this.stage = new Stage(/** @type {HTMLCanvasElement} */ (element("stage")));
    /** @type {Model | null} */
    this.model = null;
    /** @type {Photo | null} */
    this.photo = null;
    /** @type {Embedding | null} */
    this.embedding = null;
    /** @type {import("./panel_everything.js").Candidate[] | null} */
    this.candidates = null; // everything mode's masks
    this.lastAction = ""; // announced with the mask that it gave
    this.refreshStatus = () => {};
    /** @type {Promise<unknown>} */
    this.reading = Promise.resolve(); // files are read in the order in which they were chosen
    /** @type {WeakMap<Uint32Array, Path2D>} */
    this.paths = new WeakMap();
  }

  /** Load the last visit's work and the model. */
  async start() {
    const loaded = this.saving.load();
    this.reading = loaded.catch(() => null); // `start`'s caller has the error
    await loaded;
    const { photos } = this.work;
    if (photos.length) message(say.restored(photos.length));
    const last = await this.saving.loadSetting("photo");
    await this.show(photos.find(({ id }) => id === last) ?? photos[0] ?? null);
    try {
      this.model = await loadModel();
      this.dispatchEvent(new Event("model"));
      busy("");
    } catch (error) {
      busy("");
      const text = say.modelFailed(error instanceof Error ? error.message : String(error));
      element("backend").textContent = text;
      message(text, "error");
      return;
    }
    this.refreshStatus();
    await this.encode();
  }

  /**
   * Open files: photos, and annotations. Annotations find the photos that were chosen before them.
   *
   * @param {File[]} files
   * @param {Origin} origin
   */
  async open(files, origin) {
    const read = this.reading.then(() => this.#read(files, origin));
    this.reading = read.catch(() => null); // the caller has the error
    const first = await read;
    if (first) await this.show(first);
  }

  /** @param {File[]} files @param {Origin} origin @returns {Promise<PhotoEntry | null>} the one to show */
  async #read(files, origin) {
    const isJson = (/** @type {File} */ { name, type }) => type === "application/json" || /\.json$/i.test(name);
    /** @type {PhotoEntry | null} */
    let first = null;
    for (const file of files.filter((one) => !isJson(one))) {
      const entry = await this.#openPhoto(file, origin);
      first ??= entry;
    }
    for (const file of files.filter(isJson)) {
      try {
        const result = await importAnnotations(file, this.work);
        for (const photo of result.added) await this.saving.addPhoto(photo);
        message(say.imported(result), result.skipped.length ? "error" : "info");
        if (!this.work.current) first ??= this.work.photos[0] ?? null;
      } catch (error) {
        showError(error, file.name);
      }
    }
    return first;
  }

  /** @param {File} file @param {Origin} origin @returns {Promise<PhotoEntry | null>} null if it can't be read */
  async #openPhoto(file, origin) {
    const { work } = this;
    const bare = file.name.replace(/^.*[\\/]/, "");
    const same = work.photos.find(({ name, blob }) => name === bare && blob?.size === file.size);
    if (same) return same;
    busy(say.opening(bare));
    try {
      const waiting = work.photos.find(({ name, blob }) => name === bare && !blob);
      const id = newId();
      const blob = new Blob([await file.arrayBuffer()], { type: file.type }); // the file on the disk may change
      const { photo } = await this.photos.open({ id, blob, name: bare });
      const read = { blob, width: photo.width, height: photo.height, thumbnail: thumbnailOf(photo) };
      if (waiting && waiting.width === photo.width && waiting.height === photo.height) {
        Object.assign(waiting, read, { origin });
        await this.photos.close(id);
        await this.saving.addPhoto(waiting);
        work.dispatchEvent(new Event("photos"));
        return waiting;
      }
      if (waiting) message(say.sizeDiffers(bare, waiting.width, waiting.height), "error");
      const added = work.add({ id, origin, ...read, name: work.freeName(bare) });
      for (const note of photo.notes ?? []) message(`${added.name}: ${note}`);
      await this.saving.addPhoto(added);
      await this.photos.tidy(work.current?.id ?? added.id);
      return added;
    } catch (error) {
      showError(error, bare);
      return null;
    } finally {
      busy("");
    }
  }

  /** @param {PhotoEntry | null} entry */
  async show(entry) {
    const { work, stage } = this;
    this.photo = this.embedding = null;
    this.drafting.use(null, null);
    work.select(entry);
    element("welcome").hidden = entry !== null;
    element("missing").hidden = entry === null || entry.blob !== null;
    element("missing-title").textContent = entry ? say.missingTitle(entry.name) : "";
    stage.setPhoto(null);
    this.#tell();
    if (!entry) return;
    void this.saving.setting("photo", entry.id);
    if (!entry.blob) return;
    try {
      const { photo } = await this.photos.open(entry);
      if (work.current !== entry) return;
      this.photo = photo;
      stage.setPhoto(photo);
      this.drawObjects();
      this.#tell();
      if (this.model) await this.encode();
      await this.photos.tidy(work.current?.id ?? entry.id);
    } catch (error) {
      showError(error, entry.name);
    }
  }

  /** Encode the current photo, and predict the mask of its prompt. */
  async encode() {
    const { model, photo, work } = this;
    const entry = work.current;
    if (!model || !photo || !entry) return;
    busy(say.encoding(entry.name));
    try {
      const embedding = await this.photos.encode(entry, model);
      if (work.current !== entry || this.photo !== photo) return;
      this.embedding = embedding;
      this.drafting.use(model, embedding);
      this.#tell();
      await this.drafting.update(work.state.draft);
    } catch (error) {
      showError(error, entry.name);
    } finally {
      if (work.current === entry) busy("");
    }
  }

  /** @param {PhotoEntry} entry */
  async removePhoto(entry) {
    const { work } = this;
    const at = work.photos.indexOf(entry);
    const wasCurrent = entry === work.current;
    work.remove(entry);
    await this.saving.removePhoto(entry);
    if (wasCurrent) await this.show(work.photos[Math.min(at, work.photos.length - 1)] ?? null);
    await this.photos.close(entry.id);
  }

  /** Draw the current objects, or in everything mode the masks that were found. */
  drawObjects() {
    const { work, stage, photo } = this;
    if (!photo) return stage.setLayers([]);
    if (this.candidates) {
      const dropped = [140, 140, 140];
      return stage.setLayers(
        this.candidates.map(({ path, chosen, colour: index }) => {
          return { path, colour: chosen ? colour(index) : dropped, strong: false };
        }),
      );
    }
    const { draft, objects } = work.state;
    const visible = objects.filter(({ id, hidden }) => !hidden && id !== draft.editing);
    const layers = visible.map((object) => {
      const path = this.paths.get(object.counts) ?? pathOf(object, photo.height);
      this.paths.set(object.counts, path);
      return { path, colour: colour(object.colour), strong: object.id === work.selected };
    });
    return stage.setLayers(layers);
  }

  /** @param {Amount} amount of masks to choose from */
  setAmount(amount) {
    for (const radio of document.querySelectorAll("input[name=amount]")) {
      if (radio instanceof HTMLInputElement) radio.checked = Number(radio.value) === amount;
    }
    this.drafting.setAmount(amount);
    void this.saving.setting("amount", amount);
  }

  /** Predict again with the chosen mask as an input. */
  refine() {
    const { prediction, choice } = this.drafting;
    if (!prediction || button("refine").disabled) return;
    this.lastAction = say.refining;
    const size = prediction.logits.length / 4;
    this.work.commitDraft({ maskInput: prediction.logits.slice(choice * size, (choice + 1) * size), choice: null });
  }

  #tell() {
    this.dispatchEvent(new Event("photo"));
  }
}

fillTexts();
listenToDialogs();
export const app = new App();
const open = app.open.bind(app);
const maskPanel = attachMaskPanel(app);
const objectsPanel = attachObjects(app);
attachKeep(app);
const everything = attachEverything(app);
attachFile(app);
attachStrip(app);
listenToActions(app, { maskPanel, objectsPanel, everything });
listenToOpening(open);
listenToSettings(app);
void listExamples(open);
app.start().catch(showError);
