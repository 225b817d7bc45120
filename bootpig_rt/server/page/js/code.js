/** A request as code that anybody can run. The key is never written into it. */

/**
 * @typedef {object} Call
 * @property {string} base the server's address, without a slash at its end
 * @property {Record<string, unknown>} body of one picture
 * @property {string} file what the picture is to be called
 * @property {boolean} needsKey
 */

/** What the client has arguments for; the rest goes through `extra_body`. */
const OF_OPENAI = ["model", "prompt", "n", "size"];

/** @param {Call} call */
export function asCurl({ base, body, file, needsKey }) {
  return [
    `curl -sS --fail-with-body ${base}/v1/images/generations`,
    ...(needsKey ? ['  -H "Authorization: Bearer $BOOTPIG_KEY"'] : []),
    "  -H 'Content-Type: application/json'",
    "  -H 'Accept: image/png'",
    `  -o ${quoted(file)}`,
    `  -d ${quoted(JSON.stringify(body, null, 2))}`,
  ].join(" \\\n");
}

/** @param {Call} call */
export function asPython({ base, body, file, needsKey }) {
  const own = Object.entries(body).filter(([name]) => OF_OPENAI.includes(name));
  const extra = Object.entries(body).filter(([name]) => !OF_OPENAI.includes(name));
  const key = needsKey ? 'os.environ["BOOTPIG_KEY"]' : '"none"';
  return [
    "import base64",
    ...(needsKey ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}/v1`)}, api_key=${key})`,
    "answer = client.images.generate(",
    ...own.map(([name, value]) => `    ${name}=${literal(value)},`),
    ...(extra.length ? ["    extra_body={", ...extra.map(([name, value]) => `        ${literal(name)}: ${literal(value)},`), "    },"] : []),
    ")",
    `with open(${literal(file)}, "wb") as picture:`,
    "    picture.write(base64.b64decode(answer.data[0].b64_json))",
    "",
  ].join("\n");
}

/**
 * For a POSIX shell.
 *
 * @param {string} text
 */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * As Python writes it.
 *
 * @param {unknown} value
 * @returns {string}
 */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return JSON.stringify(value); // a JSON text or number is one of Python's, too
}
