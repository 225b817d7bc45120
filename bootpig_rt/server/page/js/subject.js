/** Who is to be drawn: own pictures, a subject of the library, or nobody. */

import { ApiError } from "./api.js";
import { blobOfDataUrl } from "./images.js";
import { encodeSubject } from "./subjects.js";

/** @typedef {import("./types.js").SubjectFacts} SubjectFacts */
/** @typedef {"pictures" | "library" | "none"} Source */

/** What is missing before anything can be drawn; `field` is where to put it. */
export class Missing extends Error {
  /**
   * @param {string} message
   * @param {string} field id of an element
   */
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

/** Knows which subject the server has made of which pictures. Dispatches "encoded" for a new one. */
export class SubjectChoice extends EventTarget {
  /** @type {Source} */
  source = "pictures";
  /** Of the library. @type {SubjectFacts | null} */
  known = null;

  #references;
  #referencePrompt;
  /** By pictures and reference prompt. @type {Map<string, SubjectFacts>} */
  #encoded = new Map();
  /** A number for each file, for a text cannot hold a file. @type {WeakMap<File, number>} */
  #numbers = new WeakMap();
  #count = 0;

  /**
   * @param {import("./references.js").References} references
   * @param {() => string} referencePrompt
   */
  constructor(references, referencePrompt) {
    super();
    this.#references = references;
    this.#referencePrompt = referencePrompt;
  }

  /** What the references show. */
  get referencePrompt() {
    if (this.source === "none") return "";
    return this.source === "library" ? (this.known?.reference_prompt ?? "") : this.#referencePrompt();
  }

  /** The first reference as the model sees it. @returns {Blob | null} */
  get picture() {
    if (this.source === "none") return null;
    const known = this.source === "library" ? this.known : this.#encoded.get(this.#key());
    const url = known?.preview ?? this.#references.usable[0]?.seen;
    return url ? blobOfDataUrl(url) : null;
  }

  /**
   * The id of the subject, having it encoded if the server has not done so yet.
   *
   * @param {string} model that will draw it; others can draw it as well
   * @param {AbortSignal} [signal]
   * @returns {Promise<string | null>} null draws from the prompt alone
   * @throws {Missing} no pictures, or no word on what they show
   */
  async idFor(model, signal) {
    if (this.source === "none") return null;
    if (this.source === "library") {
      if (!this.known) throw new Missing("Choose a subject from the library.", "upload-subject");
      return this.known.id;
    }
    const known = this.#encoded.get(this.#key());
    if (known) return known.id;
    const files = this.#references.usable.map((one) => one.file);
    if (!files.length) {
      throw new Missing("Choose a picture of your subject, or one of the examples.", "choose");
    }
    const prompt = this.#referencePrompt();
    if (!prompt) {
      throw new Missing("Say what the pictures show, such as “a photo of an owl”.", "reference_prompt");
    }
    const key = this.#key();
    const facts = await encodeSubject(files, prompt, model, signal);
    this.#encoded.set(key, facts);
    this.dispatchEvent(new CustomEvent("encoded", { detail: facts }));
    return facts.id;
  }

  /** The server has this subject no longer. @param {string} id */
  forget(id) {
    for (const [key, facts] of this.#encoded) if (facts.id === id) this.#encoded.delete(key);
    if (this.known?.id === id) this.known = null;
  }

  /**
   * Whether a failure means that the server has forgotten the subject, and its pictures are here.
   *
   * @param {unknown} error
   */
  canBeMadeAgain(error) {
    return error instanceof ApiError && error.code === "subject_not_found" && this.source === "pictures";
  }

  #key() {
    const numbers = this.#references.usable.map(({ file }) => this.#number(file));
    return `${numbers.join()}|${this.#referencePrompt()}`;
  }

  /** @param {File} file */
  #number(file) {
    if (!this.#numbers.has(file)) this.#numbers.set(file, (this.#count += 1));
    return this.#numbers.get(file);
  }
}
