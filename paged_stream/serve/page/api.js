// Requests to the service that this page came from.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem("key", key);
}

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method,
    headers,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Refused(answer.error?.message ?? `status ${response.status}`, response.status);
  }
  return response;
}

// What a path answers, as JSON has it.
export async function ask(path, options) {
  return (await send(path, options)).json();
}

export function tell(path, body = {}) {
  return ask(path, { method: "POST", body });
}

// The values of metrics by their names; what has labels is summed up.
export async function metrics() {
  const text = await (await send("metrics")).text();
  const values = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)(?:\{.*\})? (\S+)$/.exec(line);
    if (match) values.set(match[1], (values.get(match[1]) ?? 0) + Number(match[2]));
  }
  return values;
}

// Yields what a path sends as server-sent events.
async function* events(path, signal) {
  const response = await send(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

// Yields all that happens in a stream from an event on, across breaks of the connection.
export async function* follow(id, after, signal) {
  let pause = 0;
  while (!signal.aborted) {
    try {
      for await (const event of events(`v1/streams/${id}/events?after=${after}`, signal)) {
        pause = 0;
        after = event.event_id;
        yield event;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
    }
    pause = Math.min(2 * pause + 250, 8000);
    await new Promise((wake) => setTimeout(wake, pause));
  }
}
