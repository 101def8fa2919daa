// What the buttons do, and what is told of it.

import { byId, chip, element, pause } from "./dom.js";
import { Client } from "./clients.js";
import { Log } from "./log.js";
import { Plot } from "./plot.js";
import { ReconnectingWebSocket } from "./reconnecting-websocket.js";

const MOST = 200; // a browser lets a page hold about 250 sockets
const AT_ONCE = 6; // Chromium has a page with many handshakes in flight wait for seconds
const STEP = 10;
const SERVED = "/crash-on-message"; // divides 1 by what the client says
const ENDINGS = {
  "/crash-before-accept": "Crash before accept",
  "/crash-after-accept": "Crash after accept",
  "/try-again-later": "TryAgainLater in a handler",
  "/close-on-purpose": "CloseWith(4003)",
  "/return-early": "Return without closing",
  "/close-badly": "Close with 1006 and 192 bytes",
};

const root = document.documentElement;
const log = new Log();
const plot = new Plot(byId("plot"));
const clients = new Set();
const counts = {}; // closes by code
let server = null; // what it said last
let number = 0;
let without = ""; // the path of the application without the middleware, when that is used

// What has happened, in words that are read out politely; a number is a close code

let told = 0;

function tell(...parts) {
  told++;
  byId("news").replaceChildren(...parts.map((part) => (typeof part === "number" ? chip(part) : part)));
}

// What takes a while

let work = null;

function drop() {
  work?.resolve(false);
  work = null;
  showWork();
}

/** Show progress until `done()` returns [all, all]; resolve to whether it got there before other work began. */
function until(done) {
  drop();
  return new Promise((resolve) => {
    work = { done, resolve };
    showWork();
  });
}

function showWork() {
  const [value, max] = work?.done() ?? [0, 0];
  if (work && value >= max) {
    work.resolve(true);
    work = null;
  }
  byId("progress").hidden = !work;
  if (work) Object.assign(byId("progress"), { max, value });
}

const SETTLED = 250; // a browser calls a socket open that is refused a moment later

// Clients

const inState = (state) => [...clients].filter((client) => client.state === state);
const isAnswered = (client) => client.wasOpen || client.codes.length > 0;

function open(path = SERVED) {
  if (clients.size >= MOST) {
    tell(`This page holds at most ${MOST} clients. Close them first.`);
    return null;
  }
  const protocols = byId("subprotocol").checked ? ["demo.v1"] : [];
  const client = new Client(++number, without + path, protocols, log, { changed, closed });
  clients.add(client);
  byId("clients").append(client.tile);
  refresh();
  return client;
}

function closed(code) {
  plot.closed(code);
  counts[code] = (counts[code] ?? 0) + 1;
}

let changes = [];
const change = () => new Promise((resolve) => changes.push(resolve));
function changed() {
  for (const resolve of changes.splice(0)) resolve();
  refresh();
}

function closeAll() {
  for (const client of clients) client.close();
  clients.clear();
  drop();
  changed();
}

/** Open `count` of them, and resolve to those when the server has answered, or null if they were closed meanwhile. */
async function openAll(count) {
  const total = Math.min(count, MOST - clients.size);
  if (!total) return open();
  const opened = [];
  const answered = until(() => [opened.filter(isAnswered).length, total]);
  while (opened.length < total) {
    if (opened.some((client) => !clients.has(client))) return null;
    if (inState("connecting").length >= AT_ONCE) await change();
    else if (clients.size < MOST) opened.push(open());
    else return drop(), open(); // another click was faster
  }
  if (!(await answered)) return null;
  await pause(SETTLED);
  return opened;
}

async function openAndTell(count) {
  if (count > 1) tell(`Opening ${count} sessions…`);
  const before = told;
  const opened = await openAll(count);
  if (!opened || told > before) return; // there is other news
  const refused = {};
  for (const [code] of opened.map((client) => client.codes)) if (code) refused[code] = (refused[code] ?? 0) + 1;
  const inside = opened.filter((client) => !client.codes.length).length;
  const parts = [`${inside} of ${opened.length} came in.`];
  for (const [code, many] of Object.entries(refused)) parts.push(` ${many} got `, Number(code), ".");
  if (refused[1013]) parts.push(" Each was told when to come back, and will.");
  else if (without) parts.push(" Nothing limits them.");
  tell(...parts);
}

// Things to try

/** Send an order; resolve to whether the server did it. */
async function order(button, action, body) {
  button.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`/control/${action}`, { method: "POST", body: body && JSON.stringify(body) });
    if (!response.ok) tell(await response.text());
    return response.ok;
  } catch {
    tell("The server does not answer.");
    return false;
  } finally {
    button.removeAttribute("aria-busy");
  }
}

byId("crash").onclick = async () => {
  const [client] = inState("open");
  const victim = client ?? open();
  if (!victim) return;
  while (victim.state === "connecting") await change();
  if (victim.state === "open") await crash(victim);
};

async function crash(client) {
  const before = client.codes.length;
  client.say("0");
  while (client.codes.length === before && clients.has(client)) await change();
  if (!clients.has(client)) return;
  client.strike();
  const { code, ref } = client.end;
  if (ref) tell(`Client ${client.number} said 0, the handler divided by it, and the client got `, code, " with ref=", log.button(ref), ". The ref opens the stack trace.");
  else tell(`The same bug: client ${client.number} got `, code, " and no reason. The server’s log has a stack trace, and nothing leads there.");
}

byId("stall").onclick = async ({ currentTarget }) => {
  tell("A handler blocks the event loop for a second, and five newcomers arrive…");
  const start = performance.now();
  until(() => [Math.min(performance.now() - start, 1500), 1600]);
  if (!(await order(currentTarget, "stall"))) return;
  const opened = await openAll(5);
  if (!opened) return;
  const refused = opened.filter(({ codes: [code] }) => code === 1013).length;
  if (refused) tell(`Everybody waited. ${refused} of 5 newcomers got `, 1013, " with cause=lag, as others will for five seconds. Those inside stay. The log names the line that blocked.");
  else tell("Everybody waited, the newcomers too. Nothing turned them away, so that the next stall takes longer.");
};

let wanted = null; // the limit that clicks have asked for, until the server has it

async function changeLimit(button, by) {
  const limit = Math.max((wanted ?? server?.limit ?? 2 * STEP) + by, 0);
  wanted = limit;
  if (!(await order(button, "limit", { max_sessions: limit })) || limit !== wanted) return;
  const excess = server.sessions - limit;
  if (without) tell(`The limit is ${limit}, and nobody asks for it: these clients bypass the middleware.`);
  else if (excess > 0) tell(`The limit is ${limit}. ${excess} too many leave with `, 1013, ", a few a second, the newest first.");
  else tell(`The limit is ${limit}.${by > 0 ? " Those who wait come in when their time has come." : ""}`);
}
byId("lower").onclick = ({ currentTarget }) => changeLimit(currentTarget, -STEP);
byId("raise").onclick = ({ currentTarget }) => changeLimit(currentTarget, STEP);

byId("drain").onclick = async ({ currentTarget }) => {
  const before = server.sessions;
  if (!(await order(currentTarget, "drain"))) return;
  if (without) tell("The server drains, and these clients hear nothing of it: when it stops, they are cut off.");
  else tell(`${before} sessions leave with `, 1012, ", one after another. Newcomers get it at once.");
  const drained = await until(() => [before - server.sessions, before]);
  if (drained && !without) tell("Drained: all were told ", 1012, ", and look for the next process. Start it again.");
};

byId("resume").onclick = async ({ currentTarget }) => {
  if (!(await order(currentTarget, "resume"))) return;
  drop();
  tell("A fresh start. Those who were told to come back do so.");
};

byId("close").onclick = () => {
  closeAll();
  tell("All closed. Start with ", element("em", {}, "100"), ".");
};

for (const button of document.querySelectorAll("[data-open]")) button.onclick = () => openAndTell(Number(button.dataset.open));

for (const [path, what] of Object.entries(ENDINGS)) {
  const button = byId("endings").appendChild(element("button", { type: "button", title: path }, what));
  button.dataset.path = path;
  button.onclick = async () => {
    const client = open(path);
    while (client && !client.codes.length && clients.has(client)) await change();
    if (!client?.codes.length) return;
    client.strike();
    const { code, reason } = client.end;
    tell(`Client ${client.number} of ${path} got `, code, reason ? ` and “${reason}”.` : " and no reason.");
  };
}

byId("app").onchange = ({ target }) => {
  closeAll();
  without = target.value;
  root.classList.toggle("without", Boolean(without));
  tell(without ? "The same application without the middleware. Do the same clicks." : "With the middleware again.");
  refresh();
};

// Colours

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
byId("theme").onclick = () => {
  localStorage.setItem("theme", (root.dataset.theme = isDark() ? "light" : "dark"));
  showTheme();
};
dark.onchange = showTheme;
showTheme();

// What is shown, once for many changes

let isDue = false;
function refresh() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    show();
  });
}

function show() {
  byId("waiting").textContent = inState("waiting").length;
  byId("clients-empty").hidden = clients.size > 0;
  byId("close").disabled = !clients.size;
  const others = [];
  for (const [code, count] of Object.entries(counts)) {
    const card = document.querySelector(`[data-count="${code}"]`);
    if (!card) others.push(`${code} × ${count}`);
    else [card.textContent, card.dataset.seen] = [count, ""];
  }
  byId("others").hidden = !others.length;
  byId("others").textContent = `Other codes: ${others.join(", ")}`;
  if (server) {
    const [sessions, limit] = without ? [server.bare, null] : [server.sessions, server.limit];
    byId("open").textContent = sessions;
    byId("of").textContent = limit === null ? "without a limit" : `of ${limit}`;
    byId("limit").textContent = server.limit ?? "none";
    byId("lower").disabled = server.limit === 0;
    byId("raise").disabled = byId("stall").disabled = false;
    byId("drain").disabled = server.draining;
    byId("resume").disabled = !server.draining;
    plot.describe(sessions, limit, counts);
  }
  showWork();
}

// What the server says, ten times a second, on a socket that no gate limits

const feed = new ReconnectingWebSocket(`${location.origin.replace("http", "ws")}/feed`, { backoff: { cap: 2e3 } });
let isLost = false;
feed.addEventListener("open", () => {
  log.clear(); // the server tells all that it has, once more
  if (isLost) tell("The server is back.");
  isLost = false;
});
feed.addEventListener("message", ({ data }) => {
  server = JSON.parse(data);
  if (server.limit === wanted) wanted = null;
  log.add(server.lines);
  plot.sample(...(without ? [server.bare, null] : [server.sessions, server.limit]));
  refresh();
});
feed.addEventListener("close", () => {
  if (!isLost) tell("The server does not answer. This page keeps trying.");
  isLost = true;
});

setInterval(() => {
  for (const client of clients) client.count();
  showWork();
}, 100);
setInterval(() => document.hidden || plot.draw(), 250);
