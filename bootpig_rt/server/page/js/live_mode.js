/** The live mode of the page: what is typed is drawn, with the model of few steps if there is one. */

import { ServerAway } from "./api.js";
import { byId, show } from "./dom.js";
import { bodyOf } from "./form.js";
import { Live } from "./live.js";
import { pictureOf } from "./picture.js";
import { Missing } from "./subject.js";
import { explain, milliseconds } from "./words.js";

/** For models that have no few steps of their own: rough pictures, soon. */
const ROUGH_STEPS = 8;
/** Settings that are right for one model and wrong for another. */
const OF_A_MODEL = {
  num_inference_steps: null,
  image_guidance_scale: null,
  text_guidance_scale: null,
  solver: null,
  reference_schedule: null,
};

/**
 * @typedef {object} Wish
 * @property {import("./types.js").Settings} settings
 * @property {string | null} subject_id known once it is drawn
 */

export class LiveMode {
  isOn = false;

  #parts;
  /** @type {Live<Wish>} */
  #live;
  #figure = byId("live-figure", HTMLElement);
  #hint = byId("live-hint", HTMLElement);
  #seed = byId("live-seed", HTMLInputElement);
  #retryTimer = 0;

  /** @param {import("./studio.js").Parts} parts */
  constructor(parts) {
    this.#parts = parts;
    this.#live = new Live({
      bodyOf: async (wish, signal) => {
        wish.subject_id = await parts.subject.idFor(wish.settings.model, signal);
        return bodyOf({ ...wish.settings, ...parts.place.body(), ...parts.guide.body() }, wish.subject_id);
      },
      onPicture: (drawn, { settings, subject_id }, took_ms) => {
        const { subject, gallery, stage } = parts;
        const about = { took_ms, model: settings.model, subject_id, subject };
        stage.flow(pictureOf(drawn, { ...about, earlier: gallery.pictures }));
        this.#tellPace();
      },
      onFailure: (error, wish) => this.#tell(error, wish),
    });
    this.#seed.addEventListener("input", () => this.wish());
    const keep = byId("keep", HTMLButtonElement);
    keep.addEventListener("click", async () => {
      const { picture } = parts.stage;
      if (picture && !parts.gallery.pictures.includes(picture)) await parts.gallery.add(picture);
    });
  }

  /** @param {boolean} isOn */
  turn(isOn) {
    this.isOn = isOn;
    show(byId("live-panel", HTMLElement), isOn);
    show(byId("go", HTMLElement), !isOn);
    if (isOn) {
      this.#figure.textContent = "Live";
      this.#hint.textContent = this.#model?.is_few_step
        ? `Type, or move the seed: ${this.#model.id} draws along.`
        : "This server has no model of few steps, so pictures are rough and take a while.";
      this.wish();
    } else {
      this.#live.stop();
      clearTimeout(this.#retryTimer);
      const { stage } = this.#parts;
      if (stage.picture) stage.show(stage.picture);
    }
  }

  /** The form has changed. */
  wish() {
    const { form, subject, references, consent } = this.#parts;
    if (!this.isOn || !form.prompt) return;
    if (subject.source === "pictures" && references.isOwn && !consent.isGiven) {
      this.#hint.textContent = "Please agree to the line below your pictures first.";
      return;
    }
    clearTimeout(this.#retryTimer);
    const said = form.read();
    const model = this.#model?.id ?? said.model;
    const own = model === said.model ? {} : OF_A_MODEL; // what was set for another is left out
    const settings = { ...said, ...own, n: 1, seed: Number(this.#seed.value), model };
    if (!this.#model?.is_few_step) settings.num_inference_steps ??= ROUGH_STEPS;
    this.#live.wish({ settings, subject_id: null });
  }

  get #model() {
    const { form } = this.#parts;
    if (form.model?.is_few_step) return form.model;
    return form.models.find(({ is_few_step }) => is_few_step) ?? form.model;
  }

  #tellPace() {
    const pace = this.#live.picturesPerSecond;
    const took = this.#live.lastTook_ms;
    const parts = [pace ? `${pace.toFixed(pace < 10 ? 1 : 0)} pictures/s` : "", took ? milliseconds(took) : ""];
    this.#figure.textContent = parts.filter(Boolean).join(" · ");
    this.#hint.textContent = this.#model?.id ?? "";
  }

  /**
   * @param {unknown} error
   * @param {Wish} wish
   */
  #tell(error, wish) {
    const { connection, subject } = this.#parts;
    connection.hear(error);
    if (subject.canBeMadeAgain(error) && wish.subject_id) {
      subject.forget(wish.subject_id);
      this.wish();
      return;
    }
    const { title, text, retryIn_s } = explain(error);
    this.#hint.textContent = error instanceof Missing ? error.message : `${title}. ${text}`;
    if (retryIn_s !== null) this.#retryTimer = setTimeout(() => this.wish(), 1000 * retryIn_s);
    if (error instanceof ServerAway) this.#figure.textContent = "";
  }
}
