/** The gallery: what was drawn here, kept through reloads. */

import { byId, el, roveThrough, show } from "./dom.js";
import { allPictures, dropAllPictures, dropPicture, keepPicture } from "./pictures.js";
import { askWhether, toast } from "./toast.js";

/** @typedef {import("./types.js").Picture} Picture */

/** Dispatches "open" with a picture as its detail, or null, and "add" after one was added. */
export class Gallery extends EventTarget {
  /** Newest first. @type {Picture[]} */
  pictures = [];

  #list = byId("pictures", HTMLElement);
  /** @type {Map<string, string>} */
  #urls = new Map();

  constructor() {
    super();
    roveThrough(this.#list);
    byId("clear-gallery", HTMLButtonElement).addEventListener("click", () => this.#clear());
  }

  async load() {
    try {
      this.pictures = await allPictures();
    } catch {
      toast("This browser keeps nothing here, so the gallery lasts until the page is closed.");
    }
    this.#render();
  }

  /** @param {Picture} picture */
  async add(picture) {
    this.pictures.unshift(picture);
    this.#list.prepend(this.#card(picture));
    this.#settle();
    this.dispatchEvent(new Event("add"));
    try {
      const gone = await keepPicture(picture);
      for (const id of gone) this.#forget(id);
    } catch {
      toast("The picture could not be kept: this browser has no room for it.");
    }
  }

  /**
   * Delete a picture; it can be taken back for a while.
   *
   * @param {Picture} picture
   */
  async remove(picture) {
    const at = this.pictures.indexOf(picture);
    this.#forget(picture.id);
    await dropPicture(picture.id).catch(() => {}); // where nothing is kept, nothing needs dropping
    toast("Deleted.", {
      action: "Undo",
      onAction: async () => {
        this.pictures.splice(at, 0, picture);
        this.#render();
        await keepPicture(picture);
        this.dispatchEvent(new CustomEvent("open", { detail: picture }));
      },
    });
  }

  async #clear() {
    const isSure = await askWhether(`Delete all ${this.pictures.length} pictures from this browser?`, "Delete all");
    if (!isSure) return;
    await dropAllPictures().catch(() => {});
    this.pictures = [];
    this.#render();
    this.dispatchEvent(new CustomEvent("open", { detail: null }));
  }

  /** @param {string} id */
  #forget(id) {
    this.pictures = this.pictures.filter((one) => one.id !== id);
    this.#list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.remove();
    URL.revokeObjectURL(this.#urls.get(id) ?? "");
    this.#urls.delete(id);
    this.#settle();
  }

  #render() {
    this.#list.replaceChildren(...this.pictures.map((one) => this.#card(one)));
    this.#settle();
  }

  #settle() {
    show(byId("gallery-empty", HTMLElement), this.pictures.length === 0);
    show(byId("clear-gallery", HTMLElement), this.pictures.length > 0);
  }

  /** @param {Picture} picture */
  #card(picture) {
    const url = this.#urls.get(picture.id) ?? URL.createObjectURL(picture.blob);
    this.#urls.set(picture.id, url);
    const prompt = String(picture.parameters["prompt"] ?? "");
    const button = el(
      "button",
      { type: "button", onclick: () => this.dispatchEvent(new CustomEvent("open", { detail: picture })) },
      el("img", { src: url, alt: `Generated: ${prompt}`, loading: "lazy" }),
      el("span", { className: "tag", textContent: "AI" }),
      el("span", { className: "prompt", textContent: prompt, ariaHidden: "true" }),
    );
    return el("li", { "data-id": picture.id }, button);
  }
}
