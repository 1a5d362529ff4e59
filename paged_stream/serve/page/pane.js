// A stream on the page: its band, its text and what can be done to it.

import { drawBand } from "./band.js";

const NEAR_END = 40; // pixels: who is that near to the end of the text follows it

export class Pane {
  // `actions` are what its buttons do, by name; `fail` shows an error.
  constructor(stream, actions, fail) {
    this.stream = stream;
    this.actions = actions;
    this.fail = fail;
    this.element = document.getElementById("pane").content.cloneNode(true).firstElementChild;
    this.find = (selector) => this.element.querySelector(selector);
    this.text = this.find(".text");
    this.input = this.find("textarea");
    this.find("h2").textContent = name(stream.id);
    this.needsText = true;
    this.drawn = 0;
    this.followsEnd = true;
    this.resizing = new ResizeObserver(() => this.follow());
    this.resizing.observe(this.text);
    this.abort = new AbortController();
    this.listen();
    this.plan();
  }

  listen() {
    const { signal } = this.abort;
    const on = (target, event, function_) => target.addEventListener(event, function_, { signal });
    on(this.stream, "changed", ({ detail }) => {
      this.needsText ||= detail !== "delta";
      this.plan();
    });
    on(this.stream, "failed", ({ detail }) => this.fail(new Error(detail)));
    on(document, "selectionchange", () => this.showButtons());
    on(this.text, "scroll", () => {
      const below = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight;
      this.followsEnd = below < NEAR_END;
    });
    on(this.find(".leave"), "click", () => this.actions.leave(this));
    for (const button of this.element.querySelectorAll("[data-do]")) {
      on(button, "click", () => this.act(button.dataset.do));
    }
    on(this.find("form"), "submit", (event) => {
      event.preventDefault();
      this.send();
    });
    on(this.input, "keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
  }

  close() {
    this.abort.abort();
    this.resizing.disconnect();
    this.element.remove();
  }

  async act(what) {
    const button = this.find(`[data-do="${what}"]`);
    if (button?.disabled) return;
    try {
      const span = this.selection();
      if (what === "cut") await this.stream.do("cut", { start: span[0], end: span[1] });
      else if (what === "rewind") await this.stream.do("rewind", { position: span[0] });
      else if (what === "park" || what === "end_turn") await this.stream.do(what);
      else await this.actions[what](this);
    } catch (error) {
      this.fail(error);
    }
  }

  async send() {
    const how = this.find("select").value;
    const text = this.input.value;
    const most = this.find("input").valueAsNumber;
    if ((!text && how !== "generate") || this.stream.isGenerating) return;
    this.input.value = "";
    try {
      await this.stream.say(how, text, Number.isNaN(most) ? null : most);
    } catch (error) {
      this.input.value ||= text;
      this.fail(error);
    }
  }

  // The positions [start, end) of the selected text, if it is in the stream.
  selection() {
    const selection = document.getSelection();
    if (selection.rangeCount === 0 || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    const spans = [...this.text.querySelectorAll("span[data-start]")].filter((span) => range.intersectsNode(span));
    if (!spans.length || !this.text.contains(range.commonAncestorContainer)) return null;
    return [Number(spans[0].dataset.start), Number(spans.at(-1).dataset.end)];
  }

  // Drawing, at most once per frame

  plan() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.stream.stats !== null) this.draw();
    });
  }

  draw() {
    const { stats } = this.stream;
    drawBand(this.find(".band"), stats, this.stream.windowStart);
    const state = stats.is_generating ? "writes" : { host: "parked", disk: "parked on disk" }[stats.location] ?? "rests";
    this.find(".where").textContent = state;
    this.find(".facts").replaceChildren(
      fact("position", stats.num_tokens.toLocaleString("en")),
      fact("sees", `${stats.num_visible_tokens.toLocaleString("en")} tokens`),
      fact("blocks", stats.num_blocks.toLocaleString("en")),
      fact("keys and values", bytes(stats.kv_bytes)),
    );
    this.drawText();
    this.follow();
    this.showButtons();
  }

  // Keep the end in view for who has not gone back in the text.
  follow() {
    if (this.followsEnd) this.text.scrollTop = this.text.scrollHeight;
  }

  drawText() {
    if (this.needsText) {
      this.needsText = false;
      this.text.replaceChildren(...nodesOf(this.stream.parts()));
      this.drawn = this.stream.tail.length;
      return;
    }
    const start = this.stream.turnBegan ?? 0;
    let position = start + this.stream.tail.slice(0, this.drawn).reduce((sum, part) => sum + part.count, 0);
    for (const part of this.stream.tail.slice(this.drawn)) {
      this.text.append(span({ start: position, end: position + part.count, text: part.text, kind: "window" }));
      position += part.count;
    }
    this.drawn = this.stream.tail.length;
  }

  showButtons() {
    const isBusy = this.stream.isGenerating;
    const span = this.selection();
    const isParked = ["host", "disk"].includes(this.stream.stats?.location);
    const start = this.stream.windowStart;
    const isInWindow = span !== null && span[0] >= Math.max(start, this.stream.stats.num_sink_tokens);
    const disabled = {
      end_turn: !isBusy,
      cut: isBusy || !isInWindow,
      rewind: isBusy || !isInWindow,
      fork: isBusy,
      park: isBusy || isParked,
      save: isBusy,
    };
    for (const [name_, value] of Object.entries(disabled)) {
      this.find(`[data-do="${name_}"]`).disabled = value;
    }
    this.find('[type="submit"]').disabled = isBusy;
  }
}

export function name(id) {
  return `stream ${id.slice(0, 6)}`;
}

function fact(term, value) {
  const pair = document.createElement("div");
  const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
  dt.textContent = term;
  dd.textContent = value;
  pair.append(dt, dd);
  return pair;
}

function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  const power = count < 1 ? 0 : Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

function* nodesOf(parts) {
  for (const part of parts) {
    if (part.isCut) yield gap("something was cut out here");
    else if (part.skipped > 0) yield gap(part.skipped === 1 ? "1 token has left the window" : `${part.skipped.toLocaleString("en")} tokens have left the window`);
    yield span(part);
  }
}

function span({ start, end, text, kind }) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  if (start !== undefined) Object.assign(element.dataset, { start, end });
  return element;
}

function gap(text) {
  const element = document.createElement("span");
  element.className = "gap";
  element.textContent = text;
  return element;
}
