/** From base64 to what an `<img>` can show. */

/**
 * @param {string} base64
 * @param {string} [type]
 */
export function blobOfBase64(base64, type = "image/png") {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return new Blob([bytes], { type });
}

/** @param {string} url "data:image/png;base64,..." */
export function blobOfDataUrl(url) {
  const [head = "", base64 = ""] = url.split(",", 2);
  return blobOfBase64(base64, /^data:([\w/+.-]+)/.exec(head)?.[1] ?? "image/png");
}
