// SPDX-License-Identifier: Apache-2.0
// The page: a stream of events keeps the table, the timeline and the lesson; the rings of the chosen vif are asked for.
"use strict";

const RING_MS = 400;        // between two looks at the rings
const HISTORY = 60;         // snapshots of a sparkline
const MAX_EVENTS = 200;     // lines of the timeline
const OLD_LOOKS = 8;        // looks after which a slot that did not change is drawn as old

const $ = (id) => document.getElementById(id);
const devices = new Map();  // by name: {state, history, last, rates, row}
let chosen = null;
let paused = false;
let losses = [];           // names of counters, which the backend's event brings

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

// ---- the table

function device(name) {
  if (!devices.has(name)) {
    const button = element("button", { type: "button", textContent: name });
    button.addEventListener("click", () => choose(name));
    const cells = ["state", "network", "tx", "rx", "lost"].map((cell) =>
      element("td", { className: ["tx", "rx", "lost"].includes(cell) ? "number" : "" }));
    const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    spark.setAttribute("class", "spark");
    spark.setAttribute("viewBox", `0 0 ${HISTORY - 1} 20`);
    spark.setAttribute("preserveAspectRatio", "none");
    spark.setAttribute("role", "img");
    spark.setAttribute("aria-label", "no traffic yet");
    spark.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    const row = element("tr", {}, element("th", { scope: "row" }, button), ...cells, element("td", {}, spark));
    const [state, network, tx, rx, lost] = cells;
    devices.set(name, { name, row, button, state, network, tx, rx, lost, spark, rates: {}, history: [], last: null });
    $("rows").append(row);
    if (chosen === null) choose(name);
  }
  return devices.get(name);
}

function forget(name) {
  devices.get(name)?.row.remove();
  devices.delete(name);
  if (chosen === name) choose(devices.keys().next().value ?? null);
}

function choose(name) {
  chosen = name;
  for (const each of devices.values()) each.button.setAttribute("aria-pressed", String(each.name === name));
  $("pace-choice").value = "full";
  showRings([]);
  look();
}

function onState(event) {
  if (event.gone) {
    forget(event.device);
    return;
  }
  const known = device(event.device);
  const same = event.backend === event.frontend;
  known.state.textContent = same ? event.backend : `backend ${event.backend}, guest ${event.frontend}`;
  if (event.error) known.state.append(element("div", { className: "error", textContent: event.error }));
}

function onStatistics(event) {
  const known = device(event.device);
  const counts = event.counters ?? {};
  if (known.last && event.time > known.last.time) {
    const seconds = event.time - known.last.time;
    known.rates = Object.fromEntries(Object.entries(counts).map(([counter, value]) =>
      [counter, Math.max(0, value - (known.last.counts[counter] ?? 0)) / seconds]));
  }
  known.last = { time: event.time, counts };
  known.history = [...known.history, (known.rates.tx_bytes ?? 0) + (known.rates.rx_bytes ?? 0)].slice(-HISTORY);
  known.tx.textContent = rate(known, "tx");
  known.rx.textContent = rate(known, "rx");
  const lost = [...Object.entries(counts).filter(([counter]) => losses.includes(counter)), ...Object.entries(event.drops ?? {})];
  known.lost.textContent = lost.length ? String(lost.reduce((sum, [, value]) => sum + value, 0)) : "0";
  known.lost.title = lost.map(([counter, value]) => `${counter} ${value}`).join(", ");
  draw(known);
}

function draw(known) {
  const most = Math.max(1, ...known.history);
  const first = HISTORY - known.history.length;
  const points = known.history.map((value, at) => `${first + at},${19 - 18 * value / most}`);
  known.spark.firstChild.setAttribute("points", points.join(" "));
  known.spark.setAttribute("aria-label", `at most ${amount(8 * Math.max(0, ...known.history), "bit/s")} in the last minute`);
}

async function refreshNetworks() {
  const known = await ask("/api/devices");
  for (const each of known?.devices ?? known ?? []) {
    if (devices.has(each.device)) devices.get(each.device).network.textContent = each.network ?? each.net ?? "–";
  }
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
  title.textContent = `${ring.ring.toUpperCase()}: ${ring.pending ?? "?"} of ${ring.slots_total} requests wait`;
  state.textContent = `req_prod ${req_prod}, rsp_prod ${rsp_prod}, req_event ${req_event}, rsp_event ${rsp_event}`
    + (ring.means ? `; the backend: ${ring.means}` : "")
    + (ring.waiting ? `; ${ring.waiting} frames wait for slots` : "");
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
  table.lastChild.textContent = ring.slots.map(line).join("\n") || "Every slot is free.";
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

async function look() {
  if (looking || paused || chosen === null || document.hidden) return;
  looking = true;
  const name = chosen;
  const answer = await ask(`/api/rings/${encodeURIComponent(name)}`);
  if (answer && name === chosen) showRings(answer.rings);
  looking = false;
}

// ---- the timeline

function note(text, seconds) {
  const at = seconds ? new Date(1000 * seconds) : new Date();
  const time = element("time", { dateTime: at.toISOString(), textContent: at.toLocaleTimeString([], { hour12: false }) });
  $("events").prepend(element("li", {}, time, text));
  while ($("events").children.length > MAX_EVENTS) $("events").lastChild.remove();
}

const handlers = {
  backend(info) {
    $("backend").className = info ? "" : "gone";
    $("backend").textContent = info
      ? `Backend of domain ${info.domid}, ${info.platform} Xen, netback ${info.netback}, process ${info.pid}`
      : "No backend runs. The guests' rings and states stay.";
    losses = info?.losses ?? losses;
    $("pace").hidden = info?.platform !== "emulated";
    note(info ? `A backend runs, process ${info.pid}` : "The backend ended");
    if (!info) showRings([]);
  },
  state(events) {
    for (const event of events) {
      onState(event);
      note(event.gone ? `${event.device} is gone` : `${event.device}: backend ${event.backend}, guest ${event.frontend}`);
    }
    refreshNetworks();
  },
  notice(events) {
    for (const event of events) note(`${event.device}: ${event.notice}${event.reason ? `: ${event.reason}` : ""}`);
  },
  trace(events) {
    for (const event of events) {
      const values = Object.entries(event.values).map(([name, value]) => `${name}=${value}`).join(" ");
      note(`${event.point} ${values}`, event.time);
    }
  },
  statistics(events) {
    for (const event of events) onStatistics(event);
  },
  lost(count) {
    note(`${count} events were lost: the page was too slow`);
  },
  lesson(lesson) {
    $("lesson").hidden = false;
    $("lesson-done").textContent = lesson.done;
    $("lesson-all").textContent = lesson.steps.length;
    $("lesson-title").textContent = lesson.title;
    $("lesson-text").textContent = lesson.text;
    $("lesson-said").textContent = lesson.said;
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
    stream.addEventListener(kind, (event) => { if (!paused || kind === "lesson") handle(JSON.parse(event.data)); });
  }
  stream.addEventListener("open", () => { $("events").replaceChildren(); });
  stream.addEventListener("error", () => {
    $("backend").className = "gone";
    $("backend").textContent = "The page's server does not answer.";
  });
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on" : "Pause";
  look();
});
$("pace-choice").addEventListener("change", async (event) => {
  const path = `/api/pace/${encodeURIComponent(chosen)}/${event.target.value}`;
  if (chosen !== null && !await ask(path, { method: "POST" })) note("The pace was not changed");
});
$("next").addEventListener("click", () => { if ($("next").getAttribute("aria-disabled") !== "true") teach("next"); });
$("restart").addEventListener("click", () => teach("restart"));
new MutationObserver(() => { $("none").hidden = $("rows").children.length > 0; }).observe($("rows"), { childList: true });
setInterval(look, RING_MS);
listen();
