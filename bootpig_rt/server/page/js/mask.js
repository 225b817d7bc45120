/** A mask that is painted over a picture: with mouse, finger or pen, or with the keyboard alone. */

/** How far an arrow key moves the brush, as a share of its own width. */
const STEP = 0.5;
const MOST_UNDONE = 40;

/** @typedef {{x: number, y: number}} Point in pixels of the picture */

/** Dispatches "change" when what is painted is another. */
export class Mask extends EventTarget {
  /** Of the brush, in pixels of the picture. */
  width_px = 12;
  isErasing = false;

  #surface;
  #context;
  /** What was painted before each stroke, the oldest first. @type {ImageData[]} */
  #before = [];
  /** Where the brush is. @type {Point} */
  #at = { x: 0, y: 0 };
  /** @type {Point | null} */
  #last = null;

  /**
   * @param {HTMLCanvasElement} surface lies over the picture; what is opaque in it is painted
   * @param {HTMLElement} ring shows where the brush is
   */
  constructor(surface, ring) {
    super();
    this.#surface = surface;
    const context = surface.getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("this browser has no canvas");
    this.#context = context;
    this.ring = ring;
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      surface.focus({ preventScroll: true });
      surface.setPointerCapture(event.pointerId);
      this.#moveTo(this.#pointOf(event)); // a finger comes from nowhere
      this.#begin();
      this.#strokeTo(this.#at);
    });
    surface.addEventListener("pointermove", (event) => {
      const points = event.getCoalescedEvents?.() ?? [];
      for (const one of points.length ? points : [event]) {
        const point = this.#pointOf(one);
        if (this.#last) this.#strokeTo(point);
        else this.#moveTo(point);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) surface.addEventListener(name, () => this.#end());
    surface.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Whether anything is painted. */
  get isEmpty() {
    return !this.#pixels().data.some((value, index) => index % 4 === 3 && value > 127);
  }

  /** Whether all of it is. */
  get isFull() {
    return this.#pixels().data.every((value, index) => index % 4 !== 3 || value > 127);
  }

  get canUndo() {
    return this.#before.length > 0;
  }

  /**
   * Begin anew, for a picture of a size.
   *
   * @param {number} width
   * @param {number} height
   */
  resize(width, height) {
    this.#surface.width = width;
    this.#surface.height = height;
    this.#before = [];
    this.width_px = Math.max(2, Math.round(Math.min(width, height) / 5));
    this.#moveTo({ x: width / 2, y: height / 2 });
    this.#tell();
  }

  undo() {
    const before = this.#before.pop();
    if (!before) return;
    this.#context.putImageData(before, 0, 0);
    this.#tell();
  }

  /** Nothing is painted any more; that may be undone. */
  clear() {
    this.#begin();
    this.#context.clearRect(0, 0, this.#surface.width, this.#surface.height);
    this.#end();
  }

  /** @param {number} width_px */
  setWidth(width_px) {
    this.width_px = width_px;
    this.#moveTo(this.#at);
  }

  /**
   * As the server reads it: a PNG that is transparent where it is painted.
   *
   * @returns {string} a data URL
   */
  toDataUrl() {
    const { width, height } = this.#surface;
    const made = document.createElement("canvas");
    made.width = width;
    made.height = height;
    const context = /** @type {CanvasRenderingContext2D} */ (made.getContext("2d"));
    const pixels = this.#pixels();
    for (let index = 3; index < pixels.data.length; index += 4) {
      pixels.data[index] = (pixels.data[index] ?? 0) > 127 ? 0 : 255; // the edge of a brush is soft
    }
    context.putImageData(pixels, 0, 0);
    return made.toDataURL("image/png");
  }

  #pixels() {
    return this.#context.getImageData(0, 0, this.#surface.width, this.#surface.height);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = Math.max(1, this.width_px * STEP);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const move = moves[/** @type {keyof typeof moves} */ (event.key)];
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      this.undo();
    } else if (move) {
      event.preventDefault();
      const point = { x: this.#at.x + (move[0] ?? 0), y: this.#at.y + (move[1] ?? 0) };
      if (event.shiftKey) { // paints along
        if (!this.#last) {
          this.#begin();
          this.#strokeTo(this.#at);
        }
        this.#strokeTo(point);
        this.#end();
      } else {
        this.#moveTo(point);
      }
    } else if (event.key === " ") {
      event.preventDefault();
      this.#begin();
      this.#strokeTo(this.#at);
      this.#end();
    }
  }

  #begin() {
    this.#before.push(this.#pixels());
    if (this.#before.length > MOST_UNDONE) this.#before.shift();
    this.#last = this.#at;
  }

  #end() {
    if (!this.#last) return;
    this.#last = null;
    this.#tell();
  }

  /** @param {Point} point */
  #strokeTo(point) {
    const context = this.#context;
    const from = this.#last ?? point;
    this.#moveTo(point);
    context.globalCompositeOperation = this.isErasing ? "destination-out" : "source-over";
    context.strokeStyle = "#0b6b63";
    context.lineCap = "round";
    context.lineWidth = this.width_px;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(this.#at.x + 0.001, this.#at.y); // a line without length is not drawn everywhere
    context.stroke();
    this.#last = this.#at;
  }

  /** @param {Point} point */
  #moveTo({ x, y }) {
    const { width, height } = this.#surface;
    this.#at = { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
    this.ring.style.setProperty("--x", `${(100 * this.#at.x) / width}%`);
    this.ring.style.setProperty("--y", `${(100 * this.#at.y) / height}%`);
    this.ring.style.setProperty("--width", `${(100 * this.width_px) / width}%`);
  }

  /** @param {PointerEvent} event @returns {Point} */
  #pointOf(event) {
    const { left, top, width, height } = this.#surface.getBoundingClientRect();
    return {
      x: ((event.clientX - left) * this.#surface.width) / width,
      y: ((event.clientY - top) * this.#surface.height) / height,
    };
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}
