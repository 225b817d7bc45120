/** The server's library of subjects: list, encode, fetch, delete. */

import { ask, askJson } from "./api.js";

/** @typedef {import("./types.js").SubjectFacts} SubjectFacts */

const PAGE = 100;

/** All subjects that the server knows of this key. @returns {Promise<SubjectFacts[]>} */
export async function listSubjects() {
  /** @type {SubjectFacts[]} */
  const all = [];
  for (let after = ""; ; ) {
    const page = await askJson(`v1/subjects?limit=${PAGE}${after && `&after=${after}`}`);
    all.push(...page.data);
    const last = page.data.at(-1);
    if (!page.has_more || !last) return all;
    after = last.id;
  }
}

/**
 * Have reference images encoded.
 *
 * @param {File[]} files
 * @param {string} referencePrompt
 * @param {string} model
 * @param {AbortSignal} [signal]
 * @returns {Promise<SubjectFacts>}
 */
export function encodeSubject(files, referencePrompt, model, signal) {
  const body = new FormData();
  for (const file of files) body.append("image[]", file);
  body.append("reference_prompt", referencePrompt);
  body.append("model", model);
  return askJson("v1/subjects", { method: "POST", body, ...(signal && { signal }) });
}

/**
 * Put a .subject file into the library.
 *
 * @param {File} file
 * @param {string} model
 * @returns {Promise<SubjectFacts>}
 */
export function uploadSubject(file, model) {
  const body = new FormData();
  body.append("file", file);
  body.append("model", model);
  return askJson("v1/subjects", { method: "POST", body });
}

/** @param {string} id */
export async function subjectFile(id) {
  return (await ask(`v1/subjects/${id}/file`)).blob();
}

/** @param {string} id */
export function deleteSubject(id) {
  return askJson(`v1/subjects/${id}`, { method: "DELETE" });
}
