/** Drawing with the button: from the form to pictures on the stage and in the gallery. */

import { announce } from "./announce.js";
import { ApiError, isAbort, newRequestId } from "./api.js";
import { byId, el } from "./dom.js";
import { cancel, draw } from "./draw.js";
import { bodyOf } from "./form.js";
import { pictureOf } from "./picture.js";
import { Missing } from "./subject.js";
import { explain, milliseconds, plural, progressInWords } from "./words.js";

const MOST_RETRIES = 10;

/**
 * @typedef {object} Parts
 * @property {import("./form.js").Form} form
 * @property {import("./subject.js").SubjectChoice} subject
 * @property {import("./references.js").References} references
 * @property {import("./consent.js").Consent} consent
 * @property {import("./stage.js").Stage} stage
 * @property {import("./gallery.js").Gallery} gallery
 * @property {import("./connection.js").Connection} connection
 * @property {import("./place.js").Place} place
 * @property {import("./guide.js").Guide} guide
 */

export class Studio {
  #parts;
  /** @type {{controller: AbortController, requestId: string} | null} */
  #running = null;
  #retryTimer = 0;

  /** @param {Parts} parts */
  constructor(parts) {
    this.#parts = parts;
    byId("cancel", HTMLButtonElement).addEventListener("click", () => this.cancel());
  }

  get isDrawing() {
    return this.#running !== null;
  }

  /** Stop what is being drawn, or what waits to be tried again. */
  cancel() {
    clearTimeout(this.#retryTimer);
    if (!this.#running) return;
    cancel(this.#running.requestId);
    this.#running.controller.abort();
  }

  /**
   * Draw what the form says, in place of what is being drawn.
   *
   * @param {{isNewSeed?: boolean, retries?: number}} [options] `retries` were made already
   */
  async draw({ isNewSeed = false, retries = 0 } = {}) {
    const { form, stage } = this.#parts;
    this.cancel();
    form.clearProblems();
    if (!this.#hasAll()) return;
    const settings = { ...form.read(), ...(isNewSeed && { seed: null }) };
    const before = stage.picture;
    const running = { controller: new AbortController(), requestId: newRequestId() };
    this.#running = running;
    stage.begin({ n: settings.n, size: settings.size ?? form.ownSize });
    try {
      await this.#run(settings, running);
      if (this.#running === running) stage.end();
    } catch (error) {
      if (this.#running !== running) return; // another one took over the stage
      if (isAbort(error)) this.#tellCancelled(before);
      else this.#tell(error, retries);
    } finally {
      if (this.#running === running) this.#running = null;
    }
  }

  /** Whether there is a prompt and consent, and a seed that is one; says what is missing. */
  #hasAll() {
    const { form, references, subject, consent } = this.#parts;
    if (!form.prompt) {
      form.blame("prompt", "Say what to draw, such as “a photo of an owl, in the middle of a snowy field”.");
      return false;
    }
    if (subject.source === "pictures" && references.isOwn && references.usable.length && !consent.isGiven) {
      form.blame("consent", "Please agree to this before drawing from your own pictures.");
      return false;
    }
    const { seed } = form.read();
    if (seed !== null && Number.isInteger(seed) && !Number.isSafeInteger(seed)) {
      form.blame("seed", `A browser cannot count so far: use at most ${Number.MAX_SAFE_INTEGER}.`);
      return false;
    }
    return true;
  }

  /**
   * @param {import("./types.js").Settings} settings
   * @param {{controller: AbortController, requestId: string}} running
   */
  async #run(settings, running) {
    const { subject, stage, gallery, connection, place, guide } = this.#parts;
    const { signal } = running.controller;
    const start = performance.now();
    for (let isSecond = false; ; isSecond = true) {
      const id = await subject.idFor(settings.model, signal);
      try {
        const clock = new StepClock();
        const body = bodyOf({ ...settings, ...place.body(), ...guide.body() }, id);
        for await (const event of draw(body, { requestId: running.requestId, signal })) {
          if (event.kind === "progress") {
            const { stage: part, done, total } = event.progress;
            const share = part === "steps" && total ? done / total : null;
            stage.progress(progressInWords(event.progress, clock.left_s(event.progress)), share);
          } else if (event.kind === "preview") {
            stage.preview(event.index, event.blob);
          } else {
            const took_ms = performance.now() - start;
            const about = { took_ms, model: settings.model, subject_id: id, subject };
            const picture = pictureOf(event.drawn, { ...about, earlier: gallery.pictures });
            stage.add(event.index, picture);
            if (!picture.isHeldBack) await gallery.add(picture);
          }
        }
        const took = milliseconds(performance.now() - start);
        announce(settings.n > 1 ? `${plural(settings.n, "picture")} done in ${took}` : `The picture is done, in ${took}`);
        return;
      } catch (error) {
        connection.hear(error);
        if (isSecond || id === null || !subject.canBeMadeAgain(error)) throw error;
        subject.forget(id); // its time ran out: its pictures are here, so nobody need know
        running.requestId = newRequestId();
      }
    }
  }

  /** @param {import("./types.js").Picture | null} before what was shown before */
  #tellCancelled(before) {
    const { stage } = this.#parts;
    announce("Cancelled");
    if (before) stage.show(before);
    else stage.empty();
  }

  /**
   * @param {unknown} error
   * @param {number} retries that were made already
   */
  #tell(error, retries) {
    const { form, stage, connection } = this.#parts;
    if (error instanceof Missing) {
      stage.empty();
      form.blame(error.field, error.message);
      return;
    }
    connection.hear(error);
    const said = form.named(explain(error));
    const again = el("button", { type: "button", textContent: "Draw again", onclick: () => this.draw() });
    stage.fail(said, again);
    if (said.param) form.blame(said.param, said.text);
    const isFull = error instanceof ApiError && error.code === "queue_full";
    if (isFull && said.retryIn_s !== null && retries < MOST_RETRIES) {
      this.#retryIn(said.retryIn_s, again, retries + 1);
    }
  }

  /**
   * Try again by itself, as the server has said when.
   *
   * @param {number} wait_s
   * @param {HTMLButtonElement} button
   * @param {number} retries
   */
  #retryIn(wait_s, button, retries) {
    const at = performance.now() + 1000 * wait_s;
    const stop = el("button", { type: "button", className: "plain", textContent: "Do not", onclick: () => {
      clearTimeout(this.#retryTimer);
      button.textContent = "Draw again";
      stop.remove();
    } });
    button.after(stop);
    const tick = () => {
      if (!button.isConnected) return;
      const left_s = Math.ceil((at - performance.now()) / 1000);
      if (left_s <= 0) {
        this.draw({ retries });
        return;
      }
      button.textContent = `Draw again, by itself in ${left_s} s`;
      this.#retryTimer = setTimeout(tick, Math.min(1000, at - performance.now() + 1));
    };
    tick();
  }
}

/** How long the rest takes, by the steps so far. */
class StepClock {
  #first = /** @type {{at: number, done: number, stage: string} | null} */ (null);

  /** @param {import("./types.js").Progress} progress */
  left_s({ stage, done, total }) {
    const at = performance.now();
    if (this.#first?.stage !== stage) {
      this.#first = { at, done, stage };
      return null;
    }
    const steps = done - this.#first.done;
    return steps > 0 ? (((at - this.#first.at) / steps) * (total - done)) / 1000 : null;
  }
}
