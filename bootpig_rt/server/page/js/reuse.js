/** Settings of a picture that was drawn before, and its subject as far as it can be had, into the form. */

import { byId } from "./dom.js";
import { toast } from "./toast.js";

/** @typedef {import("./types.js").Picture} Picture */
/**
 * @typedef {object} Parts
 * @property {import("./form.js").Form} form
 * @property {import("./gallery.js").Gallery} gallery
 * @property {import("./library.js").Library} library
 * @property {import("./references.js").References} references
 * @property {(source: import("./subject.js").Source) => void} setSource
 * @property {(text: string) => void} setReferencePrompt
 */

export class Reuse {
  #parts;

  /** @param {Parts} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /**
   * Put them into the form, and say what could not be had.
   *
   * @param {Picture} picture
   */
  async settingsOf(picture) {
    const { form } = this.#parts;
    form.clearProblems();
    form.restore(picture.parameters, picture.model);
    const hasSubject = await this.#subjectOf(picture);
    const lost = "The server does not know this subject any more: add its pictures.";
    toast(hasSubject ? "Its settings are in the form." : lost);
    byId("prompt", HTMLTextAreaElement).focus();
  }

  /**
   * From the server's library, or from what the gallery keeps of its reference.
   *
   * @param {Picture} picture
   * @returns {Promise<boolean>} whether it is there
   */
  async #subjectOf(picture) {
    const { gallery, library, references, setSource, setReferencePrompt } = this.#parts;
    const fingerprint = picture.parameters["subject_fingerprint"];
    if (!fingerprint) {
      setSource("none");
      return true;
    }
    const isOfIt = (/** @type {Picture} */ one) =>
      one.reference !== null && one.parameters["subject_fingerprint"] === fingerprint;
    const kept = gallery.pictures.find(isOfIt) ?? picture;
    const find = () => library.find(kept.subject_id, fingerprint);
    if (!find()) await library.load();
    const known = find();
    if (known) {
      library.choose(known);
      return true;
    }
    setSource("pictures");
    setReferencePrompt(kept.reference_prompt);
    const files = kept.reference ? [new File([kept.reference], "reference.png", { type: "image/png" })] : [];
    references.set(files, { isOwn: files.length > 0 });
    return files.length > 0;
  }
}
