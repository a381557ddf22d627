// The panel of one stream or key: where its function stands, its local variables, and its end.

import { count, duration, latency, number } from "./format.js";

const at = (id) => document.getElementById(id);
const panel = at("panel");
const token = document.querySelector("meta[name=velo-token]").content;
let shown = null; // the row that was chosen, or {find: KEY}
let timer = 0;
let before = {};

function element(name, className, ...parts) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...parts);
  return made;
}

/** Opens the panel for a row of the streams, or for a key that is looked for: {find: KEY}. */
export function openPanel(row, { ends = false } = {}) {
  shown = row;
  before = {};
  at("panel-title").textContent = row.find ?? row.key ?? row.name ?? row.address;
  at("panel-body").replaceChildren(element("p", "", "…"));
  at("said").textContent = "";
  at("end").hidden = row.find !== undefined;
  ask(false);
  panel.showModal();
  if (ends) at("end").click();
  look();
}

async function look() {
  clearTimeout(timer);
  const row = shown;
  const words = new URLSearchParams({ stream: row.find ?? (row.state === "detached" ? row.key : row.address) });
  if (row.find === undefined) words.set("socket", row.socket);
  let said;
  try {
    said = await (await fetch(`inspect?${words}`)).json();
  } catch {
    said = { error: "the dashboard's server does not answer" };
  }
  if (!panel.open || row !== shown) return;
  show(said);
  timer = setTimeout(look, 1000);
}

function show(said) {
  const parts = [];
  if (said.error) parts.push(element("p", "", said.error));
  else if (said.streams.length)
    for (const [number, one] of said.streams.entries()) {
      if (number) parts.push(element("hr"));
      parts.push(...figures(one, said.streams.length > 1));
    }
  else if (said.stuck.length) parts.push(...said.stuck.flatMap(stuck));
  else
    parts.push(element("p", "", shown.find ? `No stream and no key is called ${shown.find}.`
      : "It is over: the stream has ended."));
  at("panel-body").replaceChildren(...parts);
}

function figures(one, named) {
  const list = element("dl");
  const line = (name, value) => {
    if (value !== null && value !== undefined && value !== "")
      list.append(element("dt", "", name), element("dd", "", String(value)));
  };
  if (named || shown.find) line("stream", one.name);
  line("state", one.state);
  line("function", one.function);
  line("key", one.key);
  line("lane", one.lane);
  line("worker", `${one.worker} (pid ${one.pid})`);
  line("age", duration(one.age));
  if (one.detached !== null && one.detached !== undefined) line("detached", `for ${duration(one.detached)}`);
  if (one.file) line("at", `${one.file}:${one.line}`);
  for (const what of one.waits_for ?? []) line("awaits", what);
  if (one.events !== null && one.events !== undefined)
    line("events", `${number(one.events - one.queued)} handled, ${number(one.queued)} waiting or in hand`);
  if (one.results !== null && one.results !== undefined)
    line("results", `${number(one.results)}, ${number(one.results_queued)} unread`);
  if (one.latency_p50) line("latency", `p50 ${latency(one.latency_p50)}, p99 ${latency(one.latency_p99)}`);
  if (one.keys) {
    line("keys", `${["live", "opened", "ended", "evicted"].map((name) => `${number(one.keys[name])} ${name}`).join(", ")}`);
    for (const slow of one.keys.slowest)
      line("slowest", `${slow.key}: ${latency(1e6 * slow.seconds)} ${slow.awaits ? "at its event" : "in one step"}`);
  }
  line("error", one.error);
  const parts = [list];
  if (one.locals) {
    const locals = element("div", "locals");
    for (const [name, value] of Object.entries(one.locals)) {
      const place = `${one.worker} ${one.name} ${name}`;
      const changed = before[place] !== undefined && before[place] !== value;
      before[place] = value;
      locals.append(element("div", "", name), element("div", changed ? "changed" : "", value));
    }
    parts.push(element("h3", "", `Local variables, live`), locals);
  }
  return parts;
}

function stuck(worker) {
  const which = count(worker.streams.length, "stream");
  const text = `Worker ${worker.worker} (pid ${worker.pid}) does not answer: a function holds it (${which}).`;
  return [element("p", "", text), element("pre", "", worker.stack || "It has not written its stack.")];
}

function ask(sure) {
  at("end").hidden = sure || shown.find !== undefined;
  at("sure").hidden = at("keep").hidden = !sure;
  if (sure) {
    at("said").textContent = "Its program gets StreamClosed.";
    at("keep").focus();
  }
}

at("end").addEventListener("click", () => ask(true));
at("keep").addEventListener("click", () => { ask(false); at("said").textContent = ""; at("end").focus(); });
at("sure").addEventListener("click", async () => {
  ask(false);
  const body = JSON.stringify({ socket: shown.socket, stream: shown.address });
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  let said;
  try {
    said = await (await fetch("end", { method: "POST", headers, body })).json();
  } catch {
    said = { error: "the dashboard's server does not answer" };
  }
  const not = shown.state === "detached" ? "not ended: it has an attachment, or is over"
    : "not ended: it is over, or its worker is busy";
  at("said").textContent = said.error ?? (said.ended ? "ended" : not);
  if (said.ended) at("end").hidden = true;
  at("close").focus();
});
at("close").addEventListener("click", () => panel.close());
panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
panel.addEventListener("close", () => clearTimeout(timer));
