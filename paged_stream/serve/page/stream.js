// One stream as this page knows it: its state, its text by positions, and what has happened in it.

import { ask, follow, tell } from "./api.js";

const MOST_PIECES = 20000; // of text that the service has forgotten

export class Stream extends EventTarget {
  constructor(id) {
    super();
    this.id = id;
    this.stats = null;
    this.pieces = []; // {start, end, text}, in order; those in front of the window are only known here
    this.cuts = new Set(); // positions right behind which something was cut out
    this.tail = []; // what a turn has written since the last look at the stream: {text, count}
    this.turnBegan = null; // where that began; an estimate before the turn ends
    this.said = []; // what was sent and is not seen in the stream yet
    this.asked = []; // pieces that were appended for the turn, as far as they were still there
    this.waits = []; // seconds to the first token, one for each turn
    this.ending = new AbortController();
    this.isLooking = false;
    this.looksAgain = false;
    this.windowStart = 0; // what the next token will see begins here, behind the sinks
    this.hasLooked = false;
    this.lastId = 0; // of the last event that is in what the page knows
    this.hasMoved = false; // whether tokens of the window are at other positions than before
  }

  // A stream that goes on from another has its text.
  static forked(id, other) {
    const stream = new Stream(id);
    stream.pieces = [...other.pieces];
    stream.cuts = new Set(other.cuts);
    stream.stats = other.stats;
    stream.windowStart = other.windowStart;
    return stream;
  }

  get isGenerating() {
    return this.stats?.is_generating ?? false;
  }

  // Follow it until `end`; throws once there is no such stream.
  async follow() {
    const { last_event_id: after } = await this.look();
    for await (const event of follow(this.id, after, this.ending.signal)) await this.apply(event);
  }

  end() {
    this.ending.abort();
  }

  async apply(event) {
    const isKnown = event.event_id <= this.lastId;
    this.lastId = Math.max(this.lastId, event.event_id);
    if (event.type === "delta") {
      if (event.metrics?.first_token_time) {
        this.waits.push(event.metrics.first_token_time - event.metrics.arrival_time);
      }
      if (isKnown) return;
      if (this.turnBegan === null) await this.beginTurn();
      this.tail.push({ text: event.text, count: event.token_ids.length });
      this.changed("delta");
    } else if (event.type === "evicted") {
      this.windowStart = Math.max(this.windowStart, event.end);
      this.changed("stats");
    } else {
      this.hasMoved ||= event.type === "cut" || event.type === "rewind";
      if (event.type === "error") this.dispatchEvent(new CustomEvent("failed", { detail: event.message }));
      await this.look();
    }
  }

  async beginTurn() {
    this.turnBegan = this.stats.num_tokens;
    if (await this.glance()) this.turnBegan = this.stats.num_tokens - 1;
  }

  // Ask what the stream is and what its next token will see. One look at a time, and another one if
  // something has happened meanwhile.
  async look() {
    if (this.isLooking) {
      this.looksAgain = true;
      return this.stats;
    }
    this.isLooking = true;
    try {
      do {
        this.looksAgain = false;
        const before = this.windowStart;
        const [stats, visible] = await Promise.all([
          ask(`v1/streams/${this.id}`),
          this.visible(),
        ]);
        this.stats = stats;
        if (!stats.is_generating || !this.hasLooked) {
          this.settle(before, visible);
          this.lastId = Math.max(this.lastId, stats.last_event_id);
        }
        this.hasLooked = true;
        this.changed("text");
      } while (this.looksAgain);
    } finally {
      this.isLooking = false;
    }
    return this.stats;
  }

  // Look at its state alone, which is cheap. What ended a turn is left to the event that tells of it:
  // a stream that rests on this page has its text. Returns whether the state was taken over.
  async glance() {
    const stats = await ask(`v1/streams/${this.id}`);
    const hasEnded = !stats.is_generating && stats.last_event_id > this.lastId;
    if (this.isLooking || hasEnded) return false;
    this.stats = stats;
    this.windowStart = Math.max(this.windowStart, stats.window_start);
    this.changed("stats");
    return true;
  }

  // Take over what the service says of all from the window on. What the turn wrote that has left the
  // window already stays as the deltas told it.
  settle(before, visible) {
    const seen = piecesOf(visible);
    const first = seen.find((piece) => piece.start >= visible.num_sink_tokens);
    const start = (this.windowStart = first?.start ?? this.stats.num_tokens);
    const gone = this.pieces.filter((piece) => piece.end <= Math.min(before, start));
    const stillKnown = this.pieces.filter((piece) => piece.end > before && piece.end <= start);
    this.pieces = this.hasMoved ? gone : [...gone, ...stillKnown];
    this.hasMoved = false;
    const known = this.pieces.at(-1)?.end ?? 0;
    let position = this.stats.num_tokens - this.tail.reduce((sum, part) => sum + part.count, 0);
    for (const piece of this.asked) {
      if (piece.start >= known && piece.end <= Math.min(position, start)) this.pieces.push(piece);
    }
    for (const part of this.tail) {
      // A text comes with the last of its tokens.
      const end = position + part.count;
      if (position >= known && part.count > 1) this.keep({ start: position, end: end - 1, text: "" }, start);
      if (end > known) this.keep({ start: Math.max(position, end - 1), end, text: part.text }, start);
      position = end;
    }
    this.pieces = this.pieces.filter((piece) => piece.start >= visible.num_sink_tokens).slice(-MOST_PIECES);
    this.cuts = new Set();
    const sinks = [];
    for (const run of visible.runs) if (run.missing === "cut") this.cuts.add(run.start);
    for (const piece of seen) {
      (piece.start < visible.num_sink_tokens ? sinks : this.pieces).push(piece);
    }
    this.pieces.unshift(...sinks);
    this.tail = [];
    this.said = [];
    this.asked = [];
    this.turnBegan = null;
  }

  // Keep what has left the window of a piece that the turn wrote.
  keep(piece, windowStart) {
    if (piece.start < windowStart) this.pieces.push({ ...piece, end: Math.min(piece.end, windowStart) });
  }

  // All known text in order, as {start, end, text, kind, isCut, skipped}.
  *parts() {
    const { num_sink_tokens: sinks, num_tokens: end, num_pending_tokens: pending } = this.stats;
    const start = this.windowStart;
    const kind = (piece) =>
      piece.end <= sinks ? "sink" : piece.end <= start ? "gone" : piece.start >= end - pending ? "pending" : "window";
    let position = 0;
    for (const piece of this.pieces) {
      const isCut = this.cuts.has(piece.start);
      yield { ...piece, kind: kind(piece), isCut, skipped: isCut ? 0 : piece.start - position };
      position = piece.end;
    }
    for (const text of this.said) yield { text, kind: "pending", isCut: false, skipped: 0 };
    position = this.turnBegan ?? position;
    for (const part of this.tail) {
      const piece = { start: position, end: position + part.count, text: part.text };
      yield { ...piece, kind: piece.end <= start ? "gone" : "window", isCut: false, skipped: 0, isNew: true };
      position = piece.end;
    }
  }

  changed(what) {
    this.dispatchEvent(new CustomEvent("changed", { detail: what }));
  }

  // What can be done to it

  async say(how, text, maxTokens) {
    if (how === "append") {
      await this.do("append", { prompt: text });
      return;
    }
    const turn = { max_tokens: maxTokens, background: true };
    if (how === "chat") turn.messages = text;
    else if (text) turn.prompt = text;
    if (text) this.said.push(text);
    this.changed("text");
    try {
      await tell(`v1/streams/${this.id}/${how}`, turn);
    } catch (error) {
      this.said.pop();
      this.changed("text");
      throw error;
    }
    // The positions of what was appended are certain, even if more has come since.
    this.asked = piecesOf(await this.visible());
    await this.glance();
  }

  visible() {
    return ask(`v1/streams/${this.id}/visible?pieces=true`);
  }

  do(name, body) {
    return tell(`v1/streams/${this.id}/${name}`, body);
  }
}

// What a service says is visible, a piece for each token.
function piecesOf(visible) {
  return visible.runs.flatMap((run) =>
    run.pieces.map((text, index) => ({ start: run.start + index, end: run.start + index + 1, text })),
  );
}
