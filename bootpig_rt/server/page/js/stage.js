/** Where a picture grows, and where it is shown with what it was made from. */

import { announce } from "./announce.js";
import { Compare } from "./compare.js";
import { byId, el, isMotionReduced, show } from "./dom.js";
import { altOf, tellOutcome } from "./outcome.js";

const LARGEST = 8; // times its own size
const NARROWEST_PX = 384;
const WIDEST_PX = 608;

/** @typedef {import("./types.js").Picture} Picture */
/** @typedef {"empty" | "drawing" | "live" | "done" | "failed"} StageState */

/**
 * @typedef {object} Slot one picture of a request
 * @property {string} url of what is shown, preview or picture
 * @property {Picture | null} picture
 */

export class Stage {
  /** The picture that is shown, once it is done. @type {Picture | null} */
  picture = null;

  #section = byId("stage", HTMLElement);
  #canvas = byId("canvas", HTMLElement);
  #shown = byId("shown", HTMLImageElement);
  #strip = byId("strip", HTMLElement);
  #refusal = byId("refusal", HTMLElement);
  #progress = byId("progress", HTMLProgressElement);
  #compare = new Compare();
  /** @type {Slot[]} */
  #slots = [];
  #selected = 0;

  /**
   * A request begins.
   *
   * @param {{n: number, size: string}} request `size` as "WxH"
   */
  begin({ n, size }) {
    this.#clear();
    this.#slots = Array.from({ length: n }, () => ({ url: "", picture: null }));
    this.#selected = 0;
    const [width, height] = size.split("x");
    this.#fit(Number(width), Number(height));
    this.#enter("drawing");
    this.progress("Sending…", null);
    this.#renderStrip();
    if (this.#section.getBoundingClientRect().bottom < 200 || this.#isBelow()) {
      this.#section.scrollIntoView({ behavior: isMotionReduced() ? "auto" : "smooth", block: "start" });
    }
  }

  /**
   * @param {string} text
   * @param {number | null} share of the whole, 0 to 1; null while it is not known
   */
  progress(text, share) {
    byId("progress-text", HTMLElement).textContent = text;
    if (share === null) {
      this.#progress.removeAttribute("value");
    } else {
      this.#progress.value = share;
      this.#canvas.style.setProperty("--rest", String(1 - share));
    }
    announce(text, { isFinal: false });
  }

  /**
   * @param {number} index
   * @param {Blob} blob
   */
  preview(index, blob) {
    this.#put(index, blob, null);
  }

  /**
   * A picture is done.
   *
   * @param {number} index
   * @param {Picture} picture
   */
  add(index, picture) {
    this.#put(index, picture.blob, picture);
  }

  /** All pictures of the request are done. */
  end() {
    const done = this.#slots.find((slot) => slot.picture);
    if (!done?.picture) return this.empty();
    this.#enter("done");
    this.#select(this.#slots[this.#selected]?.picture ? this.#selected : this.#slots.indexOf(done));
  }

  /**
   * A picture that was drawn earlier.
   *
   * @param {Picture} picture
   */
  show(picture) {
    this.#clear();
    this.#fit(Number(picture.parameters["width"]), Number(picture.parameters["height"]));
    this.#slots = [{ url: URL.createObjectURL(picture.blob), picture }];
    this.#enter("done");
    this.#renderStrip();
    this.#select(0);
  }

  /**
   * A picture of the live mode, in place of the last one: no blur, no facts.
   *
   * @param {Picture} picture
   */
  flow(picture) {
    const old = this.#slots[0]?.url;
    if (this.state !== "live") this.#clear();
    this.#slots = [{ url: URL.createObjectURL(picture.blob), picture }];
    this.picture = picture;
    this.#enter("live");
    this.#fit(Number(picture.parameters["width"]), Number(picture.parameters["height"]));
    this.#shown.src = this.#slots[0]?.url ?? "";
    this.#shown.alt = altOf(picture);
    if (old) setTimeout(() => URL.revokeObjectURL(old), 1000);
  }

  /**
   * It was refused, or it failed.
   *
   * @param {import("./words.js").Explanation} explanation
   * @param {HTMLButtonElement | null} retry
   */
  fail({ title, text, requestId }, retry) {
    this.#enter("failed");
    this.#refusal.replaceChildren(
      el("h2", { textContent: title }),
      text ? el("p", { textContent: text }) : "",
      retry ?? "",
      requestId ? el("p", { className: "hint", textContent: `Request ${requestId}` }) : "",
    );
  }

  /** Nothing to show. */
  empty() {
    this.#clear();
    this.#enter("empty");
  }

  /** @returns {StageState} */
  get state() {
    return /** @type {StageState} */ (this.#section.dataset["state"]);
  }

  focus() {
    this.#section.focus({ preventScroll: true });
  }

  /** @param {StageState} state */
  #enter(state) {
    const running = byId("running", HTMLElement);
    const focused = document.activeElement;
    this.#section.dataset["state"] = state;
    this.#section.setAttribute("aria-busy", String(state === "drawing"));
    show(byId("welcome", HTMLElement), state === "empty");
    show(byId("view", HTMLElement), state !== "empty");
    show(running, state === "drawing");
    show(this.#refusal, state === "failed");
    show(this.#shown, state !== "failed" && Boolean(this.#slots[this.#selected]?.url));
    show(byId("badge", HTMLElement), state === "done" || state === "live");
    show(byId("outcome", HTMLElement), state === "done");
    if (state !== "done") this.#compare.show(null);
    if (this.#section.contains(focused) && !focused?.checkVisibility()) this.focus();
  }

  #clear() {
    for (const slot of this.#slots) URL.revokeObjectURL(slot.url);
    this.#slots = [];
    this.#selected = 0;
    this.picture = null;
    this.#shown.removeAttribute("src");
    this.#canvas.style.setProperty("--rest", "1");
    show(this.#strip, false);
  }

  /**
   * @param {number} index
   * @param {Blob} blob
   * @param {Picture | null} picture
   */
  #put(index, blob, picture) {
    const slot = this.#slots[index];
    if (!slot) return;
    const old = slot.url;
    slot.url = URL.createObjectURL(blob);
    slot.picture = picture;
    if (index === this.#selected) {
      this.#shown.src = slot.url;
      this.#shown.alt = picture ? altOf(picture) : "The picture as it grows";
      show(this.#shown, true);
    }
    if (old) setTimeout(() => URL.revokeObjectURL(old), 1000); // it is shown until the next is loaded
    this.#renderStrip();
  }

  /** @param {number} index */
  #select(index) {
    this.#selected = index;
    const slot = this.#slots[index];
    this.picture = slot?.picture ?? null;
    if (!slot) return;
    this.#shown.src = slot.url;
    show(this.#shown, Boolean(slot.url));
    this.#canvas.style.setProperty("--rest", slot.picture ? "0" : "1");
    if (slot.picture) {
      this.#shown.alt = altOf(slot.picture);
      this.#compare.show(slot.picture);
      tellOutcome(slot.picture, slot.url);
    }
    this.#renderStrip();
  }

  #renderStrip() {
    show(this.#strip, this.#slots.length > 1);
    if (this.#slots.length < 2) return;
    const hadFocus = this.#strip.contains(document.activeElement);
    this.#strip.replaceChildren(
      ...this.#slots.map((slot, index) => {
        const image = slot.url ? el("img", { src: slot.url, alt: "" }) : null;
        const button = el("button", { type: "button", onclick: () => this.#select(index) }, image);
        button.setAttribute("aria-label", `Picture ${index + 1}`);
        button.setAttribute("aria-pressed", String(index === this.#selected));
        return el("li", {}, button);
      }),
    );
    if (hadFocus) this.#strip.querySelectorAll("button")[this.#selected]?.focus();
  }

  /**
   * Small pictures are enlarged, as far as they bear it.
   *
   * @param {number} width
   * @param {number} height in pixels
   */
  #fit(width, height) {
    const [wide, high] = width > 0 && height > 0 ? [width, height] : [1, 1];
    const widest = Math.min(Math.max(LARGEST * wide, NARROWEST_PX), WIDEST_PX);
    this.#section.style.setProperty("--widest", `${widest}px`);
    this.#canvas.style.aspectRatio = `${wide} / ${high}`;
  }

  #isBelow() {
    return this.#section.getBoundingClientRect().top > innerHeight * 0.6;
  }
}
