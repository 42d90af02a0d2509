// Asking the service. The key goes to this origin alone: only paths are taken, and no redirect is followed.
import { forgetKey, storedKey } from "./key.js";
import { EventParser } from "./pure/sse.js";
import { reached, unreachable } from "./connection.js";

// An answer that is no success: `code` and `message` are the service's own words.
export class ServiceError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }

  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

async function problem(response) {
  try {
    const { code, detail } = await response.json();
    return new ServiceError(response.status, code, detail);
  } catch {
    return new ServiceError(response.status, "unknown", `the service answers ${response.status}`);
  }
}

async function ask(path, { key = storedKey(), headers = {}, ...options } = {}) {
  if (!path.startsWith("/") || path.startsWith("//")) throw new TypeError(`${path} is no path of this service`);
  const request = { credentials: "omit", mode: "same-origin", redirect: "error", cache: "no-store", ...options };
  let response;
  try {
    response = await fetch(path, { ...request, headers: { ...headers, Authorization: `Bearer ${key}` } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    unreachable();
    throw new ServiceError(0, "service_unreachable", "The service does not answer.");
  }
  reached();
  if (response.ok) return response;
  const error = await problem(response);
  if (error.status === 401 && key === storedKey()) {
    forgetKey();
    dispatchEvent(new Event("key-refused"));
  }
  throw error;
}

export const getJson = async (path, options) => (await ask(path, options)).json();
export const getText = async (path, options) => (await ask(path, options)).text();

export async function post(path, body = null, idempotencyKey = null) {
  const headers = { ...(body && { "Content-Type": "application/json" }) };
  if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
  const response = await ask(path, { method: "POST", headers, body: body && JSON.stringify(body) });
  return response.json();
}

// For a request that must not be done twice. `crypto.randomUUID` is there on HTTPS and loopback only.
export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const text = (response) => response.body.pipeThrough(new TextDecoderStream());

// Pieces of a log as they come.
export async function* follow(path, signal) {
  const response = await ask(path, { signal });
  yield* pieces(text(response));
}

// The service breaks every silence of an event stream after 15 seconds: after three times that the connection is dead.
const SILENCE_MS = 45_000;

// Messages of an event stream: {event, id, data}.
export async function* messages(path, signal) {
  const parser = new EventParser();
  const response = await ask(path, { signal });
  for await (const piece of pieces(text(response), SILENCE_MS)) yield* parser.push(piece);
}

const lost = () => new ServiceError(0, "service_unreachable", "The connection to the service was lost.");

// By its reader, since not every browser iterates over streams.
async function* pieces(stream, silenceMs = null) {
  const reader = stream.getReader();
  let timer = null;
  try {
    for (;;) {
      if (silenceMs) timer = setTimeout(() => reader.cancel(lost()), silenceMs);
      const { done, value } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw lost();
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {}); // of a connection that is gone already
  }
}
