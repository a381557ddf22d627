// The page: it listens to the server's events, and shows each look.

import { chart } from "./chart.js";
import { count, duration, latency, number, size } from "./format.js";
import { openPanel } from "./panel.js";
import { table } from "./table.js";

const at = (id) => document.getElementById(id);
const KEPT = 600; // points
let points = [];
let listening = null;
const asked = { find: "", sort: "rate", turned: false };

// Light or dark: as the system says, until the button is pressed.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const theme = () => localStorage.getItem("theme") ?? (system.matches ? "dark" : "light");
const dress = () => { root.dataset.theme = theme(); };
function turn() {
  localStorage.setItem("theme", theme() === "dark" ? "light" : "dark");
  dress();
}
dress();
system.addEventListener("change", dress);
at("theme").addEventListener("click", turn);

function large(value, unit) {
  const small = document.createElement("small");
  small.textContent = ` ${unit}`;
  return [value, small];
}

const charts = [
  {
    title: "Throughput",
    lines: [{ name: "events per second", of: (point) => point.rate }],
    now: (point) => large(number(point.rate), "events/s"),
    format: number,
  },
  {
    title: "Latency",
    lines: [
      { name: "p50", of: (point) => point.p50 },
      { name: "p99", of: (point) => point.p99 },
    ],
    now: (point) => large(latency(point.p50) || "–", "in the median stream"),
    format: latency,
    log: true,
  },
  {
    title: "Backlog",
    lines: [
      { name: "events queued", of: (point) => point.queued },
      { name: "results unread", of: (point) => point.unread },
    ],
    now: (point) => large(number(point.queued), point.lag === null ? "events queued"
      : `queued, ${number(point.lag)} records behind`),
    format: number,
  },
  {
    title: "Streams and workers",
    lines: [{ name: "streams", of: (point) => point.streams }],
    marks: [
      { name: "deaths", kind: "death", of: (point) => point.deaths },
      { name: "recoveries", kind: "recovery", of: (point) => point.recoveries },
    ],
    now: (point) => large(number(point.streams),
      `streams, ${point.keys ? `${number(point.keys)} keys, ` : ""}${count(point.workers, "worker")}`),
    format: number,
  },
].map((options) => chart(at("charts"), options));

const shortly = (name) => name?.split(":").at(-1) || "?";
const program = (row) => row.program ?? "shared supervisor";

const workers = table(at("workers"), [
  { head: "worker", cell: (row) => row.id },
  { head: "program", word: true, wide: true, cell: program },
  { head: "pid", wide: true, cell: (row) => row.pid },
  { head: "cpu", cell: (row) => (row.cpu === null ? "" : `${Math.round(row.cpu)} %`) },
  { head: "memory", cell: (row) => size(row.memory) },
  { head: "streams", cell: (row) => number(row.residents) },
  { head: "events/s", cell: (row) => number(row.events_per_second) },
  { head: "queued", wide: true, cell: (row) => number(row.queued) },
  { head: "state", cell: (row) => row.condition || "ready" },
], { id: (row) => `${row.socket} ${row.id}`, warn: (row) => row.condition !== "" });

const functions = table(at("functions"), [
  { head: "function", word: true, cell: (row) => shortly(row.function), title: (row) => `${row.function} of ${program(row)}` },
  { head: "mode", wide: true, cell: (row) => row.mode },
  { head: "streams", cell: (row) => number(row.streams) },
  { head: "lanes", wide: true, cell: (row) => number(row.lanes) },
  { head: "keys", cell: (row) => number(row.keys) },
  { head: "events/s", cell: (row) => number(row.events_per_second) },
  { head: "queued", wide: true, cell: (row) => number(row.queued) },
  { head: "p50", wide: true, cell: (row) => latency(row.latency_p50) },
  { head: "p99", cell: (row) => latency(row.latency_p99) },
], { id: (row) => `${row.mode} ${row.program} ${row.function}`, open: (row) => find(row.function) });

function nameOf(row) {
  const name = row.name ?? row.address;
  return row.key === null ? name : `${row.key} (${name})`;
}

const streams = table(at("streams"), [
  { head: "stream", word: true, sort: "name", cell: nameOf },
  { head: "function", word: true, wide: true, sort: "function", cell: (row) => shortly(row.function), title: (row) => `${row.function} of ${program(row)}` },
  { head: "keys", wide: true, cell: (row) => number(row.keys?.live) },
  { head: "age", wide: true, sort: "age", cell: (row) => duration(row.age) },
  { head: "events", wide: true, sort: "events", cell: (row) => number(row.events) },
  { head: "events/s", sort: "rate", cell: (row) => (row.state === "detached" ? "detached" : number(row.events_per_second)) },
  { head: "queued", sort: "queued", cell: (row) => number(row.queued) },
  { head: "p50", wide: true, cell: (row) => latency(row.latency_p50) },
  { head: "p99", sort: "p99", cell: (row) => latency(row.latency_p99) },
  { head: "worker", wide: true, sort: "worker", cell: (row) => row.worker },
], { id: (row) => `${row.socket} ${row.address}`, open: openPanel, sort });

const sources = table(at("sources"), [
  { head: "source", word: true, cell: (row) => row.source, title: (row) => `${row.source} of ${row.function}` },
  { head: "records", wide: true, cell: (row) => number(row.records) },
  { head: "records/s", cell: (row) => number(row.events_per_second) },
  { head: "lag", cell: (row) => (row.lag_total === null ? "–" : number(row.lag_total)), title: (row) => each(row.lag) },
  { head: "commits", cell: (row) => number(row.commits), title: (row) => each(row.committed) },
  { head: "retries", wide: true, cell: (row) => number(row.retried) },
  { head: "dead letters", cell: (row) => number(row.dead_letters) },
], { id: (row) => `${row.function} ${row.source}`, warn: (row) => row.dead_letters + row.bad > 0 });

const checkpoints = table(at("checkpoints"), [
  { head: "checkpoint", word: true, cell: (row) => row.path },
  { head: "epoch", cell: (row) => row.error ?? number(row.epoch) },
  { head: "made", cell: (row) => (row.made ? `${duration(Math.max(0, Date.now() / 1e3 - row.made))} ago` : "–") },
  { head: "keys", cell: (row) => number(row.keys) },
  { head: "size", cell: (row) => (row.bytes === undefined ? "" : size(row.bytes)) },
], { id: (row) => row.path, warn: (row) => row.error !== undefined });

function each(partitions) {
  return Object.entries(partitions).map(([name, value]) => `${name}: ${value}`).join("\n");
}

function title(id, text) {
  at(`${id}-title`).querySelector(".count").textContent = text;
}

function show(look) {
  points = [...points, look.point].slice(-KEPT);
  for (const draw of charts) draw(points);
  at("nothing").hidden = look.nothing === null;
  at("nothing").textContent = look.nothing ?? "";
  at("programs").textContent = look.programs
    .map((one) => `${program(one)}, up ${duration(one.uptime)}${one.draining ? ", draining" : ""}`).join(" · ");
  workers(look.workers);
  title("workers", look.workers.length);
  functions(look.functions);
  title("functions", look.functions.length);
  const upwards = ["name", "function", "worker"].includes(asked.sort);
  streams(look.streams, { order: asked.sort, down: upwards === asked.turned });
  title("streams", asked.find ? `${number(look.found)} of ${number(look.open)} match “${asked.find}”` : number(look.open));
  const left = look.found - look.streams.length;
  at("more").hidden = left <= 0 && !asked.find;
  at("more").textContent = left > 0
    ? `and ${number(left)} more: search for a stream, or sort by another column`
    : asked.find ? "Enter looks for this key in all functions, also in lanes." : "";
  sources(look.sources);
  checkpoints(look.checkpoints);
  title("sources", look.sources.length + look.checkpoints.length || "");
  published(look);
  incidents(look);
}

function published(look) {
  const wrong = look.published.filter((one) => one.error !== null);
  at("published").hidden = !wrong.length && look.sources.length + look.checkpoints.length > 0;
  at("published").textContent = wrong.length
    ? wrong.map((one) => `${one.address} cannot be read: ${one.error}`).join("; ")
    : look.published.length
      ? "No program reads a source now."
      : "Start velo dashboard with --metrics URL of a program that publishes its metrics, or with --checkpoint FOLDER.";
}

const told = {
  death: (one) => `worker ${one.worker} (pid ${one.pid}) of ${program(one)} died with ${count(one.streams, "stream")}`,
  recovery: (one) => one.replaces
    ? `${one.stream} of ${program(one)} replaces the lane that died with worker ${one.replaces}`
    : `${one.stream} of ${program(one)} goes on in worker ${one.worker}`,
};

function incidents(look) {
  const lines = look.incidents.toReversed().map((one) => {
    const line = document.createElement("li");
    line.className = one.kind;
    const when = document.createElement("time");
    when.textContent = new Date(one.time * 1e3).toLocaleTimeString("en-GB");
    line.append(when, told[one.kind](one));
    return line;
  });
  at("incidents").replaceChildren(...lines);
  at("calm").hidden = lines.length > 0;
  const { deaths, recoveries } = look.point;
  const plural = `${number(recoveries)} ${recoveries === 1 ? "recovery" : "recoveries"}`;
  title("incidents", deaths + recoveries ? `${count(deaths, "death")}, ${plural}` : "");
}

function state(name, text) {
  at("state").dataset.state = name;
  at("state").textContent = text;
}

function listen() {
  listening?.close();
  const words = new URLSearchParams({ find: asked.find, sort: asked.sort });
  if (asked.turned) words.set("turned", "1");
  listening = new EventSource(`events?${words}`);
  listening.addEventListener("history", (event) => { points = JSON.parse(event.data); });
  listening.addEventListener("look", (event) => {
    state("live", "live");
    show(JSON.parse(event.data));
  });
  listening.addEventListener("error", () => {
    const over = listening.readyState === EventSource.CLOSED;
    state("lost", over ? "refused: open the address of velo dashboard again" : "reconnecting");
  });
}

function sort(order) {
  asked.turned = order === asked.sort && !asked.turned;
  asked.sort = order;
  listen();
}

let waiting = 0;
function find(text) {
  asked.find = at("find").value = text;
  clearTimeout(waiting);
  waiting = setTimeout(listen, 150);
}

at("find").addEventListener("input", (event) => find(event.target.value));
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (asked.find) openPanel({ find: asked.find });
});

function chosen(by) {
  const buttons = [...at("streams").querySelectorAll("tbody button")];
  const now = buttons.indexOf(document.activeElement);
  const next = buttons[now < 0 ? 0 : Math.min(buttons.length - 1, Math.max(0, now + by))];
  next?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input");
  if (event.ctrlKey || event.metaKey || event.altKey || at("panel").open) return;
  if (event.key === "Escape" && (typing || asked.find)) { find(""); event.target.blur(); }
  else if (typing && event.key !== "ArrowDown") return;
  else if (event.key === "/") { at("find").select(); event.preventDefault(); }
  else if (event.key === "ArrowDown" || event.key === "j") { chosen(1); event.preventDefault(); }
  else if (event.key === "ArrowUp" || event.key === "k") { chosen(-1); event.preventDefault(); }
  else if (event.key === "t") turn();
  else if (event.key === "x" && event.target.closest?.("#streams tbody tr"))
    openPanel(event.target.closest("tr").shows, { ends: true });
});

// A page in the background does not have the workers asked.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { listening.close(); state("paused", "paused"); } else listen();
});
listen();
