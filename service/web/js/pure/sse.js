// Server-sent events out of pieces of text: `EventSource` cannot send a key, so the stream is read by `fetch`.

export class EventParser {
  #rest = "";

  // The messages that are whole once `text` has come: {event, id, data}; a comment alone is none.
  push(text) {
    const blocks = (this.#rest + text).split(/\r?\n\r?\n/);
    this.#rest = blocks.pop();
    return blocks.map(message).filter((found) => found !== null);
  }
}

function message(block) {
  const found = { event: "message", id: null, data: "" };
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith(":")) continue;
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") found.event = value;
    if (name === "id") found.id = value;
    if (name === "data") data.push(value);
  }
  if (!data.length && found.event === "message") return null;
  return { ...found, data: data.join("\n") };
}
