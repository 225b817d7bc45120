/** The pictures of a subject, each beside what the model will see of it. */

import { ApiError, askJson, isAbort } from "./api.js";
import { el, iconButton, show } from "./dom.js";
import { explain } from "./words.js";

const READABLE = ["image/png", "image/jpeg", "image/webp"];

/**
 * @typedef {object} Reference
 * @property {File} file
 * @property {string} url of the file, for an `<img>`
 * @property {string | null} seen what the model sees, a data URL
 * @property {string | null} warning
 * @property {string | null} problem why it cannot be used
 */

/** Dispatches "change" when pictures come or go, and "seen" when the server has looked at them. */
export class References extends EventTarget {
  /** Another array after every change. @type {Reference[]} */
  all = [];
  /** Whether somebody brought them: the drawings of the package need no consent. */
  isOwn = false;
  max = 4;

  #list;
  #problem;
  #look = new AbortController();

  /**
   * @param {{list: HTMLElement, problem: HTMLElement}} parts
   */
  constructor({ list, problem }) {
    super();
    this.#list = list;
    this.#problem = problem;
  }

  /**
   * Put these in place of what is there.
   *
   * @param {File[]} files
   * @param {{isOwn: boolean}} options
   */
  set(files, { isOwn }) {
    for (const one of this.all) URL.revokeObjectURL(one.url);
    this.all = [];
    this.isOwn = isOwn;
    this.#take(files);
  }

  /**
   * Add pictures that somebody brought. Those of the package make room for them.
   *
   * @param {File[]} files
   */
  add(files) {
    if (this.isOwn) this.#take(files);
    else this.set(files, { isOwn: true });
  }

  /** @param {Reference} reference */
  remove(reference) {
    URL.revokeObjectURL(reference.url);
    this.all = this.all.filter((one) => one !== reference);
    this.#changed("");
  }

  /** Show the pictures to the server again, after it was away. */
  lookAgain() {
    if (this.all.some((one) => !one.seen && !one.problem)) this.#see();
  }

  /** Pictures that the server did not refuse. */
  get usable() {
    return this.all.filter((one) => !one.problem);
  }

  /** @param {File[]} files */
  #take(files) {
    const unreadable = files.filter((file) => !READABLE.includes(file.type));
    const readable = files.filter((file) => READABLE.includes(file.type));
    const room = this.max - this.all.length;
    const taken = readable.slice(0, room).map((file) => {
      const url = URL.createObjectURL(file);
      return { file, url, seen: null, warning: null, problem: null };
    });
    this.all = [...this.all, ...taken];
    let problem = "";
    if (unreadable.length) {
      const names = unreadable.map((file) => file.name).join(", ");
      problem = `${names}: not a PNG, JPEG or WebP picture, so it was left out.`;
    } else if (readable.length > room) {
      problem = `This model reads ${this.max} pictures of a subject; the others were left out.`;
    }
    this.#changed(problem);
  }

  /** @param {string} problem */
  #changed(problem) {
    this.#say(problem);
    this.#render();
    this.dispatchEvent(new Event("change"));
    this.#see();
  }

  async #see() {
    this.#look.abort();
    this.#look = new AbortController();
    const { signal } = this.#look;
    const shown = this.all;
    try {
      if (shown.length) await look(shown, signal);
    } catch (error) {
      if (isAbort(error)) return;
      // It may be one of them alone: asked for one by one, each is told of what is wrong with it.
      if (isAboutPicture(error)) await Promise.all(shown.map((one) => lookAlone(one, signal)));
      else this.#say(explain(error).text);
      if (signal.aborted) return;
    }
    this.#render();
    this.dispatchEvent(new Event("seen"));
  }

  /** @param {string} problem */
  #say(problem) {
    this.#problem.textContent = problem;
    show(this.#problem, problem !== "");
  }

  #render() {
    this.#list.replaceChildren(...this.all.map((one, index) => this.#tile(one, index + 1)));
    show(this.#list, this.all.length > 0);
  }

  /**
   * @param {Reference} reference
   * @param {number} number
   */
  #tile(reference, number) {
    const seen = reference.seen
      ? el("img", { src: reference.seen, alt: `Picture ${number} as the model sees it` })
      : el("span", { className: "pending", textContent: reference.problem ? "–" : "…" });
    const note = reference.problem ?? reference.warning;
    return el(
      "li",
      { className: reference.problem ? "refused" : "" },
      el("figure", {}, el("img", { src: reference.url, alt: `Picture ${number}: ${reference.file.name}` }), el("figcaption", { textContent: "yours" })),
      el("figure", {}, seen, el("figcaption", { textContent: "the model sees" })),
      iconButton(`Remove picture ${number}`, "i-close", () => this.remove(reference), { isQuiet: true, className: "remove" }),
      note ? el("p", { className: reference.problem ? "problem" : "hint", textContent: note }) : null,
    );
  }
}

/**
 * Have the server look at pictures.
 *
 * @param {Reference[]} references
 * @param {AbortSignal} signal
 */
async function look(references, signal) {
  const body = new FormData();
  for (const one of references) body.append("image[]", one.file);
  const { data } = await askJson("v1/subjects/preview", { method: "POST", body, signal });
  references.forEach((one, index) => {
    one.seen = data[index]?.preview ?? null;
    one.warning = data[index]?.warning ?? null;
    one.problem = null;
  });
}

/**
 * @param {Reference} reference
 * @param {AbortSignal} signal
 */
async function lookAlone(reference, signal) {
  try {
    await look([reference], signal);
  } catch (error) {
    if (isAboutPicture(error)) reference.problem = explain(error).text;
  }
}

/** @param {unknown} error */
function isAboutPicture(error) {
  return error instanceof ApiError && [400, 413, 415, 422].includes(error.status);
}
