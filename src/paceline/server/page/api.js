// Talks to the server that the page came from: the key, JSON, streams, and errors in words.

const KEY = "paceline.key";
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage is off: the key lives as long as the page.
}

export function useKey(value) {
  key = value.trim();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // As above.
  }
}

/** What a person is told; `kind` says what the page should do about it. */
export class Problem extends Error {
  constructor(message, kind = "other") {
    super(message);
    this.kind = kind;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "The server cannot be reached. Once it runs again, so does this page; nothing here is lost.",
      "away",
    );
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let said = "";
  try {
    said = (await answer.json()).error.message ?? "";
  } catch {
    // Something in between answered: its text is no use to the reader.
  }
  if (answer.status === 401) {
    return new Problem(
      key
        ? "The server does not know this API key. Enter another one and run again."
        : "This server asks for an API key. Enter it in the field “API key”.",
      "key",
    );
  }
  if (answer.status === 429) return new Problem(`The server is full: ${said || "try again soon"}.`);
  if (answer.status === 503) return new Problem(`The server takes no requests now: ${said}.`);
  if (answer.status >= 500) {
    return new Problem(`The server failed (${answer.status}): ${said || "its log says why"}.`);
  }
  return new Problem(said ? `The server refuses this: ${said}.` : `The server says ${answer.status}.`);
}

export async function getJson(path) {
  return (await ask(path, { cache: "no-store" })).json();
}

function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return ask(path, { method: "POST", body: JSON.stringify(body), headers, signal });
}

export async function postJson(path, body, signal) {
  return (await post(path, body, signal)).json();
}

/** The chunks of a stream, parsed, each with `here`: when it came, on this page's clock. */
export async function* stream(path, body, signal) {
  const answer = await post(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const part = await next(reader);
      const here = performance.now();
      const frames = (held + part).split("\n\n");
      held = frames.pop();
      for (const frame of frames) {
        if (frame.startsWith(":")) continue; // a comment: the server is alive, and has no token yet
        const data = frame.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Problem(`The server broke off: ${chunk.error.message}.`);
        yield { ...chunk, here };
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // hangs up, wherever the reading ended
  }
}

async function next(reader) {
  let part;
  try {
    part = await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw broken();
  }
  if (part.done) throw broken();
  return part.value;
}

function broken() {
  return new Problem("The connection broke before the text was finished; what came is kept.");
}
