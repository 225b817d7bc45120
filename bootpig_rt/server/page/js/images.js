/** Pictures: from base64 to what an `<img>` can show, and onto canvases. */

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

/**
 * Fill a canvas of a size with the middle of a picture, cut where it is longer.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} picture
 * @param {{ width: number, height: number, ground: string }} size ground: under transparent pixels
 */
export function cover(canvas, picture, { width, height, ground }) {
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = ground;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
}
