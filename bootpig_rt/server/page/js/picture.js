/** From what the server drew to what the gallery keeps. */

import { newRequestId } from "./api.js";
import { savedBy } from "./saved.js";

/** @typedef {import("./types.js").Picture} Picture */

/**
 * @param {import("./draw.js").Drawn} drawn
 * @param {object} about
 * @param {number} about.took_ms
 * @param {string} about.model
 * @param {string | null} about.subject_id
 * @param {import("./subject.js").SubjectChoice} about.subject
 * @param {Picture[]} about.earlier
 * @returns {Picture}
 */
export function pictureOf(drawn, { took_ms, model, subject_id, subject, earlier }) {
  return {
    id: newRequestId(),
    created_at: Date.now(),
    ...drawn,
    model,
    took_ms,
    saved: savedBy(drawn, earlier),
    subject_id,
    reference: subject.picture,
    reference_prompt: subject.referencePrompt,
  };
}

/**
 * A picture that came as a file.
 *
 * @param {Blob} blob
 * @param {import("./types.js").Parameters} parameters
 * @param {import("./types.js").Model[]} models of the server
 * @returns {Picture}
 */
export function pictureOfFile(blob, parameters, models) {
  const model = models.find(({ fingerprint }) => fingerprint === parameters["model_fingerprint"]);
  return {
    id: newRequestId(),
    created_at: Date.now(),
    blob,
    model: model?.id ?? "",
    parameters,
    timings: {},
    took_ms: 0,
    reference_passes: 0,
    isHeldBack: false,
    warnings: [],
    saved: null,
    subject_id: null,
    reference: null,
    reference_prompt: String(parameters["reference_prompt"] ?? ""),
  };
}
