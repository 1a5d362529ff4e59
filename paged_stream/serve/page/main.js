// The page of a service: its streams, the panes that show them, and its meters.

import { ask, metrics, Refused, setKey, tell } from "./api.js";
import { drawBand } from "./band.js";
import { Curve } from "./curve.js";
import { name, Pane } from "./pane.js";
import { Stream } from "./stream.js";

const MOST_PANES = 2;
const SECOND = 1000;

const get = (id) => document.getElementById(id);
const streams = new Map(); // by id, in the service's order
const panes = [];
let current = null;

// Messages

function fail(error) {
  get("message").textContent = error.message;
}

function attempt(function_) {
  return async (...parameters) => {
    try {
      get("message").textContent = "";
      return await function_(...parameters);
    } catch (error) {
      fail(error);
    }
  };
}

// What the user answers to a dialog, or null.
function choose(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const isTaken = dialog.returnValue && dialog.returnValue !== "cancel";
        resolve(isTaken ? new FormData(dialog.querySelector("form")) : null);
      },
      { once: true },
    );
  });
}

// Streams

function add(stream) {
  if (streams.has(stream.id)) return streams.get(stream.id);
  streams.set(stream.id, stream);
  stream.addEventListener("changed", () => drawItem(stream));
  stream.follow().then(
    () => forget(stream),
    (error) => {
      forget(stream);
      if (error.status !== 404) fail(error);
    },
  );
  drawList();
  return stream;
}

function forget(stream) {
  stream.end();
  streams.delete(stream.id);
  for (const pane of panes.filter((each) => each.stream === stream)) hide(pane);
  drawList();
}

function drawList() {
  const items = [...streams.values()].map((stream) => {
    const item = get("stream-item").content.cloneNode(true).firstElementChild;
    item.dataset.id = stream.id;
    const button = item.querySelector("button");
    button.textContent = name(stream.id);
    button.addEventListener("click", () => show(stream));
    return item;
  });
  get("streams").replaceChildren(...items);
  for (const stream of streams.values()) drawItem(stream);
  get("nothing").hidden = panes.length > 0;
}

function drawItem(stream) {
  const item = get("streams").querySelector(`[data-id="${stream.id}"]`);
  if (item === null || stream.stats === null) return;
  item.setAttribute("aria-current", String(current?.stream === stream));
  drawBand(item.querySelector("svg"), stream.stats, stream.windowStart, { labels: false });
}

const open = attempt(async () => {
  const choice = await choose(get("opening"));
  if (choice === null) return;
  const body = {};
  for (const field of ["window_size", "num_sink_tokens"]) {
    if (choice.get(field)) body[field] = Number(choice.get(field));
  }
  if (choice.get("pin")) body.pin = [{ role: "system", content: choice.get("pin") }];
  const { id } = await tell("v1/streams", body);
  show(add(new Stream(id)));
});

async function drawSaved() {
  let saved = { data: [] };
  try {
    saved = await ask("v1/streams/saved");
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error; // else: it saves nothing
  }
  const items = saved.data.map(({ name: saved_as }) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "stream-name";
    button.textContent = `Restore ${saved_as}`;
    button.addEventListener("click", attempt(async () => {
      const { id } = await tell(`v1/streams/saved/${saved_as}/restore`);
      show(add(new Stream(id)));
    }));
    item.append(button);
    return item;
  });
  get("saved").querySelector("ul").replaceChildren(...items);
  get("saved").hidden = items.length === 0;
}

// Panes

const actions = {
  leave: hide,
  async fork(pane) {
    const { id } = await tell(`v1/streams/${pane.stream.id}/fork`);
    show(add(Stream.forked(id, pane.stream)), { beside: pane });
  },
  async save(pane) {
    const choice = await choose(get("naming"));
    if (choice === null) return;
    await tell(`v1/streams/${pane.stream.id}/save`, { name: choice.get("name") });
    await drawSaved();
  },
  async close(pane) {
    await ask(`v1/streams/${pane.stream.id}`, { method: "DELETE" });
    forget(pane.stream);
  },
};

function show(stream, { beside = null } = {}) {
  let pane = panes.find((each) => each.stream === stream);
  if (pane === undefined) {
    const replaced = beside === null ? current : panes.length < MOST_PANES ? null : panes.find((each) => each !== beside);
    pane = new Pane(stream, actions, fail);
    if (replaced) {
      replaced.element.before(pane.element);
      panes.splice(panes.indexOf(replaced), 1, pane);
      replaced.close();
    } else {
      get("panes").append(pane.element);
      panes.push(pane);
    }
    pane.element.addEventListener("focusin", () => choosePane(pane));
  }
  choosePane(pane);
  pane.input.focus();
  remember();
  drawList();
}

function choosePane(pane) {
  current = pane;
  for (const each of panes) each.element.classList.toggle("current", each === pane && panes.length > 1);
  for (const stream of streams.values()) drawItem(stream);
}

function hide(pane) {
  pane.close();
  panes.splice(panes.indexOf(pane), 1);
  if (current === pane) choosePane(panes[0] ?? null);
  remember();
  drawList();
}

// What is shown is in the address, so that a page that is loaded again shows it again.
function remember() {
  history.replaceState(null, "", `#${panes.map((each) => each.stream.id).join("+")}`);
}

function step(by) {
  const all = [...streams.values()];
  if (!all.length) return;
  const index = all.indexOf(current?.stream);
  show(all[(index + by + all.length) % all.length]);
}

// Keys

const keys = {
  n: open,
  j: () => step(1),
  k: () => step(-1),
  "?": () => get("help").showModal(),
  i: () => current?.input.focus(),
  "/": () => current?.input.focus(),
  f: () => current?.act("fork"),
  c: () => current?.act("cut"),
  r: () => current?.act("rewind"),
  p: () => current?.act("park"),
  s: () => current?.act("save"),
  x: () => current && hide(current),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const isWriting = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (current?.stream.isGenerating) current.act("end_turn");
    else current?.text.focus();
  } else if (!isWriting && keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

// Meters

const rate = new Curve(get("rate-curve"), get("rate"));
const wait = new Curve(get("wait-curve"), get("wait"), { keep: 30 });
const blocks = new Curve(get("blocks-curve"), get("blocks"), { most: 1 });
let last = null;

async function measure() {
  const values = await metrics();
  const now = performance.now();
  const count = (metric) => values.get(`paged_stream_${metric}`) ?? 0;
  if (last !== null) {
    const perSecond = (SECOND * (count("generated_tokens_total") - last.tokens)) / (now - last.time);
    rate.add(perSecond, perSecond.toFixed(perSecond < 10 ? 1 : 0));
  }
  last = { tokens: count("generated_tokens_total"), time: now };
  const used = count("used_blocks");
  const held = [...streams.values()].reduce(
    (sum, { stats }) => sum + (stats?.location === "cache" ? stats.num_blocks : 0), 0);
  const shared = Math.max(0, held - used);
  blocks.add(used / Math.max(1, count("blocks")),
    `${used} of ${count("blocks")}${shared ? `, ${shared} more by sharing` : ""}`);
  for (const stream of streams.values()) {
    for (const seconds of stream.waits.splice(0)) {
      wait.add(seconds, seconds < 1 ? `${Math.round(SECOND * seconds)} ms` : `${seconds.toFixed(1)} s`);
    }
    if (stream.isGenerating || now - (stream.glanced ?? 0) > 10 * SECOND) {
      stream.glanced = now;
      await stream.glance();
    }
  }
  const listed = (await ask("v1/streams")).data;
  for (const { id } of listed) if (!streams.has(id)) add(new Stream(id));
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      try {
        await measure();
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 404) fail(error);
      }
    }
    await new Promise((wake) => setTimeout(wake, SECOND));
  }
}

// The beginning

async function begin() {
  let models;
  while (models === undefined) {
    try {
      models = await ask("v1/models");
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) throw error;
      const choice = await choose(get("unlocking"));
      if (choice !== null) setKey(choice.get("key"));
    }
  }
  get("model").textContent = models.data[0].id;
  for (const { id } of (await ask("v1/streams")).data) add(new Stream(id));
  await drawSaved();
  for (const id of location.hash.slice(1).split("+")) {
    if (streams.has(id)) show(streams.get(id), { beside: current });
  }
  drawList();
}

get("open-button").addEventListener("click", open);
get("help-button").addEventListener("click", keys["?"]);
attempt(begin)().then(watch);
