/** The map that pictures follow: a file of it, or a photo whose outlines the server makes. */

import { byId, el, show } from "./dom.js";
import { cover } from "./images.js";
import { toast } from "./toast.js";

const READABLE = ["image/png", "image/jpeg", "image/webp"];
const OF_PHOTO = "canny";

/** Dispatches "change" when the map, its kind or its scale is another. */
export class Guide extends EventTarget {
  #form;
  #section = byId("guide", HTMLDetailsElement);
  #kind = byId("guide-kind", HTMLSelectElement);
  #file = byId("guide-file", HTMLInputElement);
  #shown = byId("guide-shown", HTMLElement);
  #picture = byId("guide-picture", HTMLCanvasElement);
  #scale = byId("guide-scale", HTMLInputElement);
  /** As it came. @type {ImageBitmap | null} */
  #given = null;

  /** @param {import("./form.js").Form} form */
  constructor(form) {
    super();
    this.#form = form;
    byId("choose-guide", HTMLButtonElement).addEventListener("click", () => this.#file.click());
    this.#file.addEventListener("change", () => {
      const [file] = this.#file.files ?? [];
      this.#file.value = "";
      if (file) this.take(file);
    });
    byId("remove-guide", HTMLButtonElement).addEventListener("click", () => this.remove());
    this.#kind.addEventListener("input", () => this.#showHint());
    this.#scale.addEventListener("input", () => this.#showScale());
    this.#showScale();
  }

  /** Offer the kinds that the chosen model has; nothing where it has none. */
  offer() {
    const kinds = this.#form.model?.controls ?? [];
    const chosen = this.#kind.value;
    this.#kind.replaceChildren(...kinds.map((kind) => el("option", { value: kind, textContent: kind })));
    if (kinds.includes(chosen)) this.#kind.value = chosen;
    show(this.#section, kinds.length > 0);
    if (!kinds.length) this.#given = null;
    show(this.#shown, this.#given !== null);
    this.#showHint();
  }

  /** @param {Blob} file a map, or a photo */
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
    this.#section.open = true;
    show(this.#shown, true);
    this.fit();
    this.dispatchEvent(new Event("change"));
  }

  remove() {
    this.#given = null;
    show(this.#shown, false);
    byId("choose-guide", HTMLButtonElement).focus();
    this.dispatchEvent(new Event("change"));
  }

  /** Make it as large as what is to be drawn. */
  fit() {
    const size = this.#form.read().size ?? this.#form.ownSize;
    const [width = 0, height = 0] = size.split("x").map(Number);
    if (!this.#given || !(width > 0 && height > 0)) return;
    cover(this.#picture, this.#given, { width, height, ground: "#000" });
  }

  /**
   * What a request says of it; nothing where there is no map.
   *
   * @returns {Record<string, unknown>}
   */
  body() {
    if (!this.#given) return {};
    this.fit();
    const control = {
      kind: this.#kind.value,
      image_url: this.#picture.toDataURL("image/png"),
      source: this.#isPhoto ? "photo" : "map",
      scale: Number(this.#scale.value) / 100,
    };
    return { controls: [control], size: null };
  }

  get #isPhoto() {
    return this.#kind.value === OF_PHOTO && byId("guide-is-photo", HTMLInputElement).checked;
  }

  #showHint() {
    show(byId("guide-photo-line", HTMLElement), this.#kind.value === OF_PHOTO);
  }

  #showScale() {
    byId("guide-scale-text", HTMLElement).textContent = `${this.#scale.value} %`;
  }
}
