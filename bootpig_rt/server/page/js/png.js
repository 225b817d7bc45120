/** What a PNG file says of itself: its text chunks, without decoding a pixel. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LONGEST_TEXT = 1 << 20;
const DIGITAL_SOURCE = "trainedAlgorithmicMedia";

/**
 * @typedef {object} PngFacts
 * @property {Record<string, string>} texts by their names
 * @property {boolean} isMarkedGenerated its XMP says that a model made it
 * @property {boolean} hasCredentials it carries a C2PA manifest
 */

/**
 * Read the chunks of a PNG.
 *
 * @param {Blob} blob
 * @returns {Promise<PngFacts | null>} null for anything else than a whole PNG
 */
export async function readPng(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (SIGNATURE.some((byte, index) => bytes[index] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  /** @type {PngFacts} */
  const facts = { texts: {}, isMarkedGenerated: false, hasCredentials: false };
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const end = at + 8 + length;
    if (end + 4 > bytes.length) return null;
    const type = latin1(bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, end);
    if (type === "IEND") return facts;
    if (type === "caBX") facts.hasCredentials = true;
    const text = length <= LONGEST_TEXT ? await textOf(type, content) : null;
    if (text) {
      facts.texts[text.name] ??= text.value;
      if (text.value.includes(DIGITAL_SOURCE)) facts.isMarkedGenerated = true;
    }
    at = end + 4;
  }
  return null;
}

/**
 * The parameters that a picture of ours was made from.
 *
 * @param {Blob} blob
 * @returns {Promise<import("./types.js").Parameters | null>}
 */
export async function readParameters(blob) {
  const facts = await readPng(blob);
  try {
    const parameters = JSON.parse(facts?.texts["parameters"] ?? "null");
    return parameters && typeof parameters.prompt === "string" ? parameters : null;
  } catch {
    return null; // a chunk of that name by another program
  }
}

/**
 * @param {string} type
 * @param {Uint8Array<ArrayBuffer>} content
 * @returns {Promise<{name: string, value: string} | null>}
 */
async function textOf(type, content) {
  if (type !== "tEXt" && type !== "zTXt" && type !== "iTXt") return null;
  const [name, rest] = cut(content);
  if (type === "tEXt") return { name: latin1(name), value: latin1(rest) };
  if (type === "zTXt") return { name: latin1(name), value: latin1(await inflate(rest.subarray(1))) };
  const isCompressed = rest[0] === 1;
  const [, afterLanguage] = cut(rest.subarray(2));
  const [, text] = cut(afterLanguage);
  const value = new TextDecoder().decode(isCompressed ? await inflate(text) : text);
  return { name: latin1(name), value };
}

/**
 * What stands before the first zero byte, and what stands after it.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {[Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>]}
 */
function cut(bytes) {
  const zero = bytes.indexOf(0);
  const at = zero < 0 ? bytes.length : zero;
  return [bytes.subarray(0, at), bytes.subarray(at + 1)];
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Promise<Uint8Array<ArrayBuffer>>} empty where they cannot be inflated, or to too much
 */
async function inflate(bytes) {
  const parts = [];
  let total = 0;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    for (const reader = stream.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      total += value.length;
      if (total > LONGEST_TEXT) {
        await reader.cancel();
        return new Uint8Array();
      }
      parts.push(value);
    }
  } catch {
    return new Uint8Array(); // damaged
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** @param {Uint8Array} bytes */
function latin1(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}
