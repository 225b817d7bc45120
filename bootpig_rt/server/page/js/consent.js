/** Consent to use somebody's pictures: asked once for own pictures, and remembered. */

import { byId, show } from "./dom.js";

const NAME = "bootpig.consent";

export class Consent {
  #line = byId("consent-line", HTMLElement);
  #tick = byId("consent", HTMLInputElement);

  constructor() {
    this.#tick.addEventListener("change", () => {
      if (this.#tick.checked) localStorage.setItem(NAME, new Date().toISOString());
      else localStorage.removeItem(NAME);
      this.#tell();
    });
    this.#tell();
  }

  /** @returns {boolean} */
  get isGiven() {
    return localStorage.getItem(NAME) !== null;
  }

  /** Ask where it was not given yet. @param {boolean} isNeeded */
  askIf(isNeeded) {
    show(this.#line, isNeeded && (!this.isGiven || !this.#line.hidden));
    this.#tick.checked = this.isGiven;
  }

  #tell() {
    const given = localStorage.getItem(NAME);
    const text = given
      ? `In this browser you agreed to that on ${new Date(given).toLocaleDateString()}.`
      : "Before the first drawing from your own pictures you are asked to agree to that.";
    byId("consent-state", HTMLElement).textContent = text;
  }
}
