/** One picture over another with a slider: what is left of the handle belongs to the other. */

import { byId, el, show } from "./dom.js";
import { milliseconds } from "./words.js";

/** @typedef {import("./types.js").Picture} Picture */

/** Lays the reference, or a picture that was kept to compare, over the picture that is shown. */
export class Compare {
  #canvas = byId("canvas", HTMLElement);
  #beside = byId("beside", HTMLImageElement);
  #split = byId("split", HTMLInputElement);
  #handle = byId("handle", HTMLElement);
  #label = byId("beside-label", HTMLElement);
  #choice = byId("compare", HTMLSelectElement);

  /** @type {Picture | null} */
  #shown = null;
  /** @type {Picture | null} */
  #pinned = null;
  #url = "";

  constructor() {
    this.#choice.value = "reference";
    this.#choice.addEventListener("change", () => {
      if (Number(this.#split.value) < 10) this.#moveTo(50); // or the choice would show nothing
      this.#render();
    });
    this.#split.addEventListener("input", () => this.#moveTo(Number(this.#split.value)));
    byId("pin", HTMLButtonElement).addEventListener("click", () => this.#pin());
    this.#moveTo(0);
  }

  /**
   * What to compare; null while nothing is shown that could be.
   *
   * @param {Picture | null} picture
   */
  show(picture) {
    this.#shown = picture;
    this.#render();
  }

  #pin() {
    if (!this.#shown) return;
    this.#pinned = this.#shown;
    const { prompt, seed, num_inference_steps: steps } = this.#pinned.parameters;
    const took = milliseconds(this.#pinned.took_ms);
    const text = `kept: seed ${seed}, ${steps} steps, ${took}: ${prompt}`;
    this.#choice.querySelector("[value=pinned]")?.remove();
    this.#choice.append(el("option", { value: "pinned", textContent: text }));
    this.#choice.value = "pinned";
    this.#moveTo(50);
    this.#render();
  }

  #render() {
    URL.revokeObjectURL(this.#url);
    this.#url = "";
    const isPinned = this.#choice.value === "pinned";
    const blob = this.#choice.value === "none" ? null : isPinned ? this.#pinned?.blob : this.#shown?.reference;
    const isOn = Boolean(this.#shown && blob);
    for (const node of [this.#beside, this.#split, this.#handle, this.#label]) show(node, isOn);
    if (!isOn || !blob) return;
    this.#url = URL.createObjectURL(blob);
    this.#beside.src = this.#url;
    this.#beside.alt = isPinned ? "The picture that was kept to compare" : "The reference as the model sees it";
    this.#label.textContent = isPinned ? `kept, ${milliseconds(this.#pinned?.took_ms ?? 0)}` : "reference";
    this.#split.setAttribute("aria-label", `How much is shown of ${isPinned ? "the kept picture" : "the reference"}`);
  }

  /** @param {number} percent */
  #moveTo(percent) {
    this.#split.value = String(percent);
    this.#split.setAttribute("aria-valuetext", `${percent} percent`);
    this.#canvas.style.setProperty("--split", `${percent}%`);
    this.#canvas.dataset["split"] = percent > 0 ? "some" : "none";
    this.#label.classList.toggle("faded", percent < 15);
  }
}
