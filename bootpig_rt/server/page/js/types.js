/**
 * What travels between the modules of the page. Types alone: this file does nothing.
 *
 * @typedef {object} Model a model as `GET /v1/models` describes it
 * @property {string} id
 * @property {string} fingerprint
 * @property {number} size_px
 * @property {number} max_references
 * @property {boolean} is_few_step
 * @property {string[]} [controls] kinds of maps that pictures can follow
 * @property {Record<string, string | number | null>} defaults
 *
 * @typedef {object} Limits what the server allows, as `GET /v1/limits` says
 * @property {number} [max_images]
 * @property {number} [max_references]
 * @property {number} [max_steps]
 * @property {number} [max_side_px]
 * @property {number} [max_body_bytes]
 * @property {number} [max_prompt_chars]
 * @property {string[]} [solvers]
 * @property {string[]} [merges]
 * @property {string | null} [contact]
 *
 * @typedef {object} SubjectFacts a subject of the server's library
 * @property {string} id
 * @property {string} model
 * @property {string} reference_prompt
 * @property {number} num_references
 * @property {number} created_at
 * @property {number | null} expires_at
 * @property {number} bytes
 * @property {boolean} has_table
 * @property {string | null} [fingerprint]
 * @property {string[]} [fingerprints] one for each model that has read it
 * @property {string | null} [preview] a data URL
 *
 * @typedef {object} Settings what the form says; null leaves it to the model
 * @property {string} model
 * @property {string} prompt
 * @property {string} negative_prompt
 * @property {number} n
 * @property {number | null} num_inference_steps
 * @property {number | null} image_guidance_scale
 * @property {number | null} text_guidance_scale
 * @property {number | null} seed
 * @property {string | null} size "WxH"
 * @property {string | null} solver
 * @property {string | null} merge
 * @property {string | null} reference_schedule
 *
 * @typedef {Record<string, unknown>} Parameters all that one picture was made from, as the server says
 *
 * @typedef {object} Picture a picture that was drawn, as the gallery keeps it
 * @property {string} id
 * @property {number} created_at milliseconds since 1970
 * @property {Blob} blob
 * @property {string} model by which the server knows it; empty if it has no such model now
 * @property {Parameters} parameters
 * @property {Record<string, number>} timings in milliseconds, by stage
 * @property {number} took_ms from pressing the button to the picture
 * @property {number} reference_passes
 * @property {boolean} isHeldBack plain grey in place of what the server's safety check flagged
 * @property {string[]} warnings what the server wants to be known
 * @property {import("./saved.js").Saved | null} saved by a reference table that was there already
 * @property {string | null} subject_id
 * @property {Blob | null} reference the first reference as the model sees it
 * @property {string} reference_prompt
 *
 * @typedef {object} Progress
 * @property {"queued" | "reference" | "steps"} stage
 * @property {number} done
 * @property {number} total
 * @property {number | null} position pictures ahead in the queue
 * @property {number | null} expected_wait_s
 */

export {};
