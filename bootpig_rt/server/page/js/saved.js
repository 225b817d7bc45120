/** What a reference table that was there already has saved. */

/** @typedef {import("./types.js").Picture} Picture */
/** @typedef {{passes: number, ms: number}} Saved */

/** What a table depends on, beside the subject. */
const OF_TABLE = ["model_fingerprint", "num_inference_steps", "solver", "reference_schedule", "table_dtype"];

/**
 * By an earlier picture of the same subject whose table had to be made.
 *
 * @param {Pick<Picture, "parameters" | "timings" | "reference_passes">} picture
 * @param {Picture[]} earlier
 * @returns {Saved | null} null if the table was made for this picture, or nothing is known
 */
export function savedBy({ parameters, timings, reference_passes }, earlier) {
  const subject = parameters["subject_fingerprint"];
  if (reference_passes > 0 || !subject) return null;
  const maker = earlier.find(
    (one) =>
      one.reference_passes > 0 &&
      one.parameters["subject_fingerprint"] === subject &&
      OF_TABLE.every((name) => one.parameters[name] === parameters[name]),
  );
  if (!maker) return null;
  const ms = (maker.timings["reference_ms"] ?? 0) - (timings["reference_ms"] ?? 0);
  return { passes: maker.reference_passes, ms: Math.max(0, ms) };
}
