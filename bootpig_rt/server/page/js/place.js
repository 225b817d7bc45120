/** The picture that the subject is drawn into: chosen, fitted to the size that is drawn, painted over. */

import { announce } from "./announce.js";
import { byId, show } from "./dom.js";
import { cover } from "./images.js";
import { Mask } from "./mask.js";
import { Missing } from "./subject.js";
import { toast } from "./toast.js";

const READABLE = ["image/png", "image/jpeg", "image/webp"];

/** Dispatches "change" when the picture, what is painted over it, or the strength is another. */
export class Place extends EventTarget {
  #form;
  #file = byId("place-file", HTMLInputElement);
  #painter = byId("painter", HTMLElement);
  #picture = byId("place-picture", HTMLCanvasElement);
  #strength = byId("strength", HTMLInputElement);
  #mask = new Mask(byId("mask", HTMLCanvasElement), byId("brush-ring", HTMLElement));
  /** As it came; it is fitted anew where another size is to be drawn. @type {ImageBitmap | null} */
  #given = null;
  #size = "";

  /** @param {import("./form.js").Form} form */
  constructor(form) {
    super();
    this.#form = form;
    const width = byId("brush-width", HTMLInputElement);
    byId("choose-place", HTMLButtonElement).addEventListener("click", () => this.#file.click());
    this.#file.addEventListener("change", () => {
      const [file] = this.#file.files ?? [];
      this.#file.value = "";
      if (file) this.take(file);
    });
    width.addEventListener("input", () => this.#mask.setWidth((this.#picture.width * Number(width.value)) / 100));
    for (const radio of this.#painter.querySelectorAll("[name=brush]")) {
      radio.addEventListener("change", () => {
        this.#mask.isErasing = /** @type {HTMLInputElement} */ (radio).value === "erase";
      });
    }
    byId("mask-undo", HTMLButtonElement).addEventListener("click", () => {
      this.#mask.undo();
      announce("The last stroke is undone");
    });
    byId("mask-clear", HTMLButtonElement).addEventListener("click", () => this.#mask.clear());
    byId("remove-place", HTMLButtonElement).addEventListener("click", () => this.remove());
    this.#strength.addEventListener("input", () => this.#showStrength());
    this.#mask.addEventListener("change", () => {
      byId("mask-undo", HTMLButtonElement).disabled = !this.#mask.canUndo;
      this.dispatchEvent(new Event("change"));
    });
    this.#showStrength();
  }

  /** Whether there is a picture to draw into. */
  get isSet() {
    return this.#given !== null;
  }

  /** @param {Blob} file a picture */
  async take(file) {
    if (!READABLE.includes(file.type)) {
      toast("That is no PNG, JPEG or WebP picture.");
      return;
    }
    try {
      this.#given = await createImageBitmap(file);
    } catch {
      toast("This picture is damaged: the browser cannot read it.");
      return;
    }
    byId("place", HTMLDetailsElement).open = true;
    show(this.#painter, true);
    this.#size = "";
    this.fit();
    byId("mask", HTMLCanvasElement).focus({ preventScroll: true });
  }

  remove() {
    this.#given = null;
    show(this.#painter, false);
    byId("choose-place", HTMLButtonElement).focus();
    this.dispatchEvent(new Event("change"));
  }

  /** Make the picture as large as what is to be drawn; what was painted is lost where that changes. */
  fit() {
    const size = this.#form.read().size ?? this.#form.ownSize;
    const [width = 0, height = 0] = size.split("x").map(Number);
    if (!this.#given || size === this.#size || !(width > 0 && height > 0)) return;
    this.#size = size;
    cover(this.#picture, this.#given, { width, height, ground: "#fff" });
    this.#painter.style.setProperty("--ratio", `${width} / ${height}`);
    this.#mask.resize(width, height);
    byId("brush-width", HTMLInputElement).value = String(Math.round((100 * this.#mask.width_px) / width));
    const isSame = this.#given.width === width && this.#given.height === height;
    byId("place-hint", HTMLElement).textContent = isSame ? "" : `Fitted to ${width} × ${height}, the size that is drawn.`;
  }

  /**
   * What a request says of it; nothing where there is no picture.
   *
   * @returns {Record<string, unknown>}
   * @throws {Missing} all of it is painted over
   */
  body() {
    if (!this.isSet) return {};
    this.fit();
    if (this.#mask.isFull) {
      throw new Missing("All of the picture is painted over: leave some of it, or remove the picture.", "choose-place");
    }
    const body = {
      images: [{ image_url: this.#picture.toDataURL("image/png") }],
      strength: Number(this.#strength.value) / 100,
      size: null,
    };
    return this.#mask.isEmpty ? body : { ...body, mask: { image_url: this.#mask.toDataUrl() } };
  }

  #showStrength() {
    byId("strength-text", HTMLElement).textContent = `${this.#strength.value} %`;
  }
}
