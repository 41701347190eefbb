// SPDX-License-Identifier: Apache-2.0
// The page: a stream of events keeps what is known of vifs and the timeline, also during a pause, and `draw` shows it;
// the rings of the chosen vif are asked for.
"use strict";

const RING_MS = 400;        // between two looks at the rings
const RETRY_MS = 3000;      // until the next try after the server refused the stream
const HISTORY = 60;         // snapshots of a sparkline
const MAX_EVENTS = 200;     // lines of the timeline
const OLD_LOOKS = 8;        // looks after which a slot that did not change is drawn as old

const $ = (id) => document.getElementById(id);
const devices = new Map();  // by name: {name, state, network, rates, history, last, lost}
const rows = new Map();     // by name: the row's elements
let backend = null;
let refusal = "";           // why no events come; empty: they do
let chosen = null;
let paused = false;
let entries = [];           // of the timeline, not drawn yet
let afresh = false;         // the timeline begins again with them

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- numbers as text

function amount(value, unit) {
  for (const prefix of ["", "k", "M", "G"]) {
    if (value < 1000 || prefix === "G") {
      return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${prefix}${unit}`;
    }
    value /= 1000;
  }
}

function rate(device, direction) {
  const bits = 8 * (device.rates[`${direction}_bytes`] ?? 0);
  const frames = device.rates[`${direction}_frames`] ?? 0;
  return frames ? `${amount(bits, "bit/s")}, ${amount(Math.round(frames), "frames/s")}` : "–";
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;     // a selection and a screen reader keep their place
}

// ---- what is known of the vifs

function keep(state) {
  const known = devices.get(state.device) ?? { name: state.device, network: "–" };
  devices.set(state.device, known);
  known.state = state;
  if (!known.history) quiet(known);
}

function quiet(known) {     // nothing was counted yet, or the counters' backend is gone
  Object.assign(known, { rates: {}, history: [], last: null, lost: [] });
}

function count(event) {
  const known = devices.get(event.device);
  if (!known) return;       // it is gone: its state said so first
  const counts = event.counters ?? {};
  if (known.last && event.time > known.last.time) {
    const seconds = event.time - known.last.time;
    known.rates = Object.fromEntries(Object.entries(counts).map(([counter, value]) =>
      [counter, Math.max(0, value - (known.last.counts[counter] ?? 0)) / seconds]));
  }
  known.last = { time: event.time, counts };
  known.history = [...known.history, (known.rates.tx_bytes ?? 0) + (known.rates.rx_bytes ?? 0)].slice(-HISTORY);
  const losses = backend?.losses ?? [];
  const lost = Object.entries(counts).filter(([counter]) => losses.includes(counter));
  known.lost = [...lost, ...Object.entries(event.drops ?? {})].filter(([, value]) => value > 0);
}

async function refreshNetworks() {
  for (const each of await ask("/api/devices") ?? []) {
    if (devices.has(each.device)) devices.get(each.device).network = each.network ?? each.net ?? "–";
  }
  draw();
}

// ---- drawing

let drawing = false;

function draw() {           // soon, once for all that comes until then
  if (drawing || paused) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (paused) return;
    drawBackend();
    drawRows();
    drawTimeline();
  });
}

function drawBackend() {
  $("backend").className = backend && !refusal ? "" : "gone";
  setText($("backend"), refusal ? refusal : backend
    ? `Backend of domain ${backend.domid}, ${backend.platform} Xen, netback ${backend.netback}, process ${backend.pid}`
    : "No backend runs. The guests' rings and states stay.");
  $("pace").hidden = !slows();
  if (!backend) showRings([]);
}

function drawRows() {
  for (const [name, row] of rows) {
    if (devices.has(name)) continue;
    row.line.remove();
    rows.delete(name);
  }
  for (const known of devices.values()) {
    if (!rows.has(known.name)) rows.set(known.name, newRow(known.name));
    drawRow(rows.get(known.name), known);
  }
  $("none").hidden = rows.size > 0;
  if (!devices.has(chosen)) choose(devices.keys().next().value ?? null);
}

function newRow(name) {
  const button = element("button", { type: "button", textContent: name });
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => choose(name));
  const [state, network, tx, rx, lost] = ["", "", "number", "number", "number"].map((className) => element("td", { className }));
  const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  spark.setAttribute("class", "spark");
  spark.setAttribute("viewBox", `0 0 ${HISTORY - 1} 20`);
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("role", "img");
  spark.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  const line = element("tr", {}, element("th", { scope: "row" }, button), state, network, tx, rx, lost, element("td", {}, spark));
  $("rows").append(line);
  state.append(element("span"), element("div", { className: "error" }));
  lost.append(element("details", {}, element("summary"), element("span")));
  return { line, button, state, network, tx, rx, lost, spark };
}

function drawRow(row, known) {
  const { backend: back, frontend: front, error } = known.state;
  const states = back === front ? back : `backend ${back}, guest ${front}`;
  row.line.className = backend ? "" : "stale";
  setText(row.state.firstChild, backend ? states : `last seen: ${states}`);
  setText(row.state.lastChild, error ?? "");
  setText(row.network, known.network);
  setText(row.tx, rate(known, "tx"));
  setText(row.rx, rate(known, "rx"));
  const [sum, causes] = row.lost.firstChild.children;
  setText(sum, backend ? String(known.lost.reduce((total, [, value]) => total + value, 0)) : "–");
  setText(causes, known.lost.map(([counter, value]) => `${counter} ${value}`).join("\n") || (backend ? "nothing was lost" : ""));
  const most = Math.max(1, ...known.history);
  const first = HISTORY - known.history.length;
  const points = known.history.map((value, at) => `${first + at},${19 - 18 * value / most}`);
  row.spark.firstChild.setAttribute("points", points.join(" "));
  row.spark.setAttribute("aria-label", known.history.length
    ? `at most ${amount(8 * Math.max(0, ...known.history), "bit/s")} in the last minute` : "no traffic yet");
}

function choose(name) {
  if (chosen !== null && chosen !== name && slows()) post(`/api/pace/${encodeURIComponent(chosen)}/leave`);
  chosen = name;
  for (const [each, row] of rows) row.button.setAttribute("aria-pressed", String(each === name));
  showRings([]);
  showPace();
  look(true);
}

// ---- rings

const seen = new Map();     // by ring and slot: what it was, and for how many looks

function showRings(rings) {
  $("no-rings").hidden = rings.length > 0;
  const list = $("ring-list");
  const wanted = rings.map((ring) => ring.ring).join();
  if (list.dataset.rings !== wanted) {
    list.dataset.rings = wanted;
    seen.clear();
    list.replaceChildren(...rings.map(newRing));
  }
  rings.forEach((ring, at) => fill(list.children[at], ring));
}

function newRing(ring) {
  const slots = element("div", { className: "slots" });
  slots.setAttribute("role", "img");
  slots.append(...Array.from({ length: ring.slots_total }, () => element("span", { className: "slot" })));
  const table = element("details", {}, element("summary", { textContent: "The slots as text" }), element("pre", { tabIndex: 0 }));
  return element("div", { className: "ring" }, element("h3"), element("p"), slots, table);
}

function fill(shown, ring) {
  const [title, state, slots, table] = shown.children;
  const { req_prod, rsp_prod, req_event, rsp_event } = ring.indices;
  setText(title, `${ring.ring.toUpperCase()}: ${ring.pending ?? "?"} of ${ring.slots_total} requests wait`);
  setText(state, `req_prod ${req_prod}, rsp_prod ${rsp_prod}, req_event ${req_event}, rsp_event ${rsp_event}`
    + (ring.means ? `; the backend: ${ring.means}` : "")
    + (ring.waiting ? `; ${ring.waiting} frames wait for slots` : ""));
  const now = new Map(ring.slots.map((slot) => [slot.index % ring.slots_total, slot]));
  [...slots.children].forEach((cell, at) => {
    const slot = now.get(at);
    const what = slot ? `${slot.kind} ${slot.index}` : "";
    const key = `${ring.ring}:${at}`;
    const before = seen.get(key);
    const looks = before?.what === what ? before.looks + 1 : 0;
    seen.set(key, { what, looks });
    const age = !slot || before === undefined ? "" : looks === 0 ? " fresh" : looks > OLD_LOOKS ? " old" : "";
    cell.className = slot ? `slot ${slot.kind}${age}` : "slot";
  });
  slots.setAttribute("aria-label", `${ring.ring} ring: ${ring.pending ?? "an impossible number of"} requests wait`);
  setText(table.lastChild, ring.slots.map(line).join("\n") || "Every slot is free.");
}

function line(slot) {
  const { index, kind, ...rest } = slot;
  const words = Object.entries(rest).map(([name, value]) => `${name} ${Array.isArray(value) ? value.join("+") : value}`);
  return `${String(index).padStart(6)}  ${kind.padEnd(8)}  ${words.join("  ")}`;
}

async function ask(path, options) {
  try {
    const response = await fetch(path, options);
    return response.ok ? await response.json() : null;
  } catch {
    return null;            // the server ended; the stream says so
  }
}

let looking = false;

async function look(evenPaused) {
  if (looking || (paused && !evenPaused) || chosen === null || !backend || document.hidden) return;
  looking = true;
  const name = chosen;
  const answer = await ask(`/api/rings/${encodeURIComponent(name)}`);
  if (answer && name === chosen && backend) showRings(answer.rings);
  looking = false;
}

// ---- slow motion

let page = "";              // how the server knows this page: what it slowed is restored when it closes

function post(path) {
  return fetch(`${path}?page=${page}`, { method: "POST" }).catch(() => null);
}

function slows() {
  return backend?.platform === "emulated";
}

async function showPace() {
  const name = chosen;
  const pace = name === null || !slows() ? null : await ask(`/api/pace/${encodeURIComponent(name)}`);
  if (!pace || name !== chosen) return;
  const unlimited = pace.tx_rate === "none" && pace.rx_rate === "none";
  setText($("full-speed"), unlimited ? "full speed" : `its own limits: from guest ${pace.tx_rate}, to guest ${pace.rx_rate}`);
  $("pace-choice").value = pace.pace;
}

// ---- the timeline

const words = {
  backend: (info) => info ? `A backend runs, process ${info.pid}` : "The backend ended",
  state: (event) => event.gone ? `${event.device} is gone`
    : `${event.device}: backend ${event.backend}, guest ${event.frontend}`,
  notice: (event) => `${event.device}: ${event.notice}${event.reason ? `: ${event.reason}` : ""}`,
  trace: (event) => [event.point, ...Object.entries(event.values).map(([name, value]) => `${name}=${value}`)].join(" "),
  page: (text) => text,
};

function note(text) {
  handlers.timeline([{ time: Date.now() / 1000, kind: "page", event: text }]);
}

function drawTimeline() {
  if (afresh) $("events").replaceChildren();
  for (const entry of entries) {
    const at = new Date(1000 * (entry.kind === "trace" ? entry.event.time : entry.time));
    const time = element("time", { dateTime: at.toISOString(), textContent: at.toLocaleTimeString([], { hour12: false }) });
    $("events").prepend(element("li", {}, time, words[entry.kind](entry.event)));
  }
  while ($("events").children.length > MAX_EVENTS) $("events").lastChild.remove();
  entries = [];
  afresh = false;
}

const handlers = {
  page(name) {
    page = name;
  },
  pace(device) {
    if (device === chosen) showPace();
  },
  backend(info) {
    backend = info;
    if (!info) devices.forEach(quiet);
    draw();
    showPace();
  },
  devices(states) {
    const present = new Set(states.map((state) => state.device));
    for (const name of devices.keys()) if (!present.has(name)) devices.delete(name);
    states.forEach(keep);
    draw();
    refreshNetworks();
  },
  state(states) {
    for (const state of states) {
      if (state.gone) devices.delete(state.device);
      else keep(state);
    }
    draw();
    refreshNetworks();
  },
  statistics(events) {
    events.forEach(count);
    draw();
  },
  timeline(more) {
    entries = [...entries, ...more].slice(-MAX_EVENTS);
    draw();
  },
  lost(count) {
    note(`${count} events were lost: the page was too slow`);
  },
  lesson(lesson) {
    $("lesson").hidden = false;
    setText($("lesson-done"), String(lesson.done));
    setText($("lesson-all"), String(lesson.steps.length));
    setText($("lesson-title"), lesson.title);
    setText($("lesson-text"), lesson.text);
    setText($("lesson-said"), lesson.said);
    const next = lesson.steps[lesson.done];
    $("next").textContent = next ? `Next: ${next}` : "That was all";
    block(!next);
    look();
  },
};

// A button that is disabled loses the keyboard's focus, so this one only says that it is.
function block(value) {
  $("next").setAttribute("aria-disabled", String(value));
}

async function teach(verb) {
  block(true);
  $("lesson-error").textContent = "";
  const response = await fetch(`/api/lesson/${verb}`, { method: "POST" }).catch(() => null);
  const answer = await response?.json().catch(() => null);
  if (response?.ok) handlers.lesson(answer);
  else {
    $("lesson-error").textContent = answer?.error ?? "The server does not answer.";
    block(false);
  }
}

function listen() {
  const stream = new EventSource("/api/events");
  for (const [kind, handle] of Object.entries(handlers)) {
    stream.addEventListener(kind, (event) => handle(JSON.parse(event.data)));
  }
  stream.addEventListener("open", () => {     // the whole timeline comes again
    refusal = "";
    entries = [];
    afresh = true;
  });
  stream.addEventListener("error", async () => {
    handlers.backend(null);
    refuse("The page's server does not answer.");
    if (stream.readyState !== EventSource.CLOSED) return;     // the browser tries again
    const asked = new AbortController();      // it does not say why the server refused, so ask once more
    const response = await fetch("/api/events", { signal: asked.signal }).catch(() => null);
    if (response && !response.ok) refuse((await response.text().catch(() => "")).trim());
    asked.abort();
    setTimeout(listen, RETRY_MS);
  });
}

function refuse(why) {
  refusal = why;
  draw();
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  draw();
  look();
});
$("pace-choice").addEventListener("change", async (event) => {
  if (chosen === null) return;
  const response = await post(`/api/pace/${encodeURIComponent(chosen)}/${event.target.value}`);
  if (response?.ok) return;
  const answer = await response?.json().catch(() => null);
  note(`The pace was not changed: ${answer?.error ?? "the server does not answer"}`);
  showPace();
});
$("next").addEventListener("click", () => { if ($("next").getAttribute("aria-disabled") !== "true") teach("next"); });
$("restart").addEventListener("click", () => teach("restart"));
setInterval(() => look(), RING_MS);
listen();
