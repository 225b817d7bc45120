/** Server-sent events of an answer to a POST, which `EventSource` cannot read. */

import { asFailure } from "./api.js";

/**
 * @typedef {object} ServerEvent
 * @property {string} event
 * @property {string} data
 */

/**
 * The events of an answer, as they come. Leaving the loop early lets the answer go.
 *
 * @param {Response} answer
 * @returns {AsyncGenerator<ServerEvent>}
 * @throws {ServerAway} the connection broke
 */
export async function* eventsOf(answer) {
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const parse = parser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parse(value);
    }
  } catch (error) {
    throw asFailure(error);
  } finally {
    reader.cancel().catch(() => {}); // it may have ended by itself
  }
}

/**
 * A function that takes text in pieces of any size, and returns the events that became whole.
 *
 * @returns {(text: string) => ServerEvent[]}
 */
export function parser() {
  let rest = "";
  let event = "message";
  /** @type {string[]} */
  let data = [];
  return (text) => {
    const events = [];
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (data.length) events.push({ event, data: data.join("\n") });
        event = "message";
        data = [];
        continue;
      }
      const [, name, value] = line.match(/^([^:]*):? ?(.*)$/s) ?? ["", "", ""];
      if (name === "event") event = value ?? "";
      if (name === "data") data.push(value ?? "");
    }
    return events;
  };
}
