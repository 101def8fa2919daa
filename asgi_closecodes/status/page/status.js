// Draws the snapshot, once a second. What comes from the server is only ever text and numbers: nothing is parsed as HTML.

const SECOND = 1000;
const HISTORY = 300;
const MEANINGS = {
  1000: "done",
  1001: "going away",
  1005: "no code",
  1006: "lost",
  1008: "policy",
  1011: "error",
  1012: "restart",
  1013: "try again later",
  3000: "unauthorized",
  3003: "forbidden",
  3008: "timeout",
  4011: "error",
  4012: "restart",
  4013: "try again later",
};

const at = (id) => document.getElementById(id);
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

const history = []; // [milliseconds, sessions, limit or null]
let process = null; // behind one address there may be several, of which any may answer

function fill(table, heads, rows, nothing) {
  const row = (name, cells) => {
    const line = document.createElement("tr");
    for (const cell of cells) {
      const element = document.createElement(name);
      if (cell instanceof Element) element.className = "bar";
      else if (typeof cell === "number") element.className = "number";
      element.append(cell instanceof Element ? cell : String(cell ?? "–"));
      line.append(element);
    }
    return line;
  };
  const [head, body] = [document.createElement("thead"), document.createElement("tbody")];
  if (rows.length) head.append(row("th", heads));
  else rows = [[nothing]];
  body.append(...rows.map((cells) => row("td", cells)));
  table.replaceChildren(head, body);
}

function bars(table, head, counts, label = (key) => key) {
  const most = Math.max(...Object.values(counts), 1);
  const bar = (count) => {
    const picture = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(svg("rect", { width: (100 * count) / most, height: 10, rx: 1 }));
    return picture;
  };
  const rows = Object.entries(counts).map(([key, count]) => [label(key), count, bar(count)]);
  fill(table, [head, "Count", ""], rows, "none yet");
}

function plot(now) {
  while (history[0][0] < now - HISTORY * SECOND) history.shift();
  const most = Math.max(1, ...history.map(([, sessions, limit]) => Math.max(sessions, limit ?? 0))) * 1.1;
  const x = (time) => (600 * (1 - (now - time) / (HISTORY * SECOND))).toFixed(1);
  const y = (value) => (150 * (1 - value / most)).toFixed(1);
  const points = history.map(([time, sessions]) => `${x(time)},${y(sessions)}`).join(" ");
  at("line").setAttribute("points", points);
  at("area").setAttribute("points", `${x(history[0][0])},150 ${points} 600,150`);
  const limit = history.at(-1)[2];
  for (const end of ["y1", "y2"]) at("ceiling").setAttribute(end, limit === null ? -10 : y(limit));
}

function show(snapshot) {
  const now = Date.now();
  const { open, draining, leaving, leaving_refused: refused, stalled, busy, drain, limits, pid } = snapshot;
  const sessions = open + leaving;
  const limit = limits.max_sessions;
  if (pid !== process) history.length = 0;
  process = pid;
  history.push([now, sessions, limit]);
  at("sessions").textContent = sessions;
  at("limit").textContent = limit === null ? "no limit" : `of ${limit}`;
  plot(now);
  const waits = drain?.waits_for_busy ? ", busy ones may finish" : "";
  const state = draining ? (sessions ? `draining: ${sessions} to go${waits}` : "drained") : "serving";
  const more = { leaving, refused, stalled, busy };
  const others = Object.keys(more).filter((name) => more[name]).map((name) => `, ${more[name]} ${name}`).join("");
  say(`Process ${pid}: ${state}${others}`, draining);
  at("drain").hidden = false;
  at("drain").disabled = draining;
  bars(at("closes"), "Code", snapshot.closes, (code) => `${code} ${MEANINGS[code] ?? ""}`);
  bars(at("refusals"), "Cause", snapshot.refusals);
  bars(at("sheds"), "Cause", snapshot.sheds);
  const gates = snapshot.gates.map(({ name, usage, limit, shadow }) => [
    shadow ? `${name} (shadow)` : name,
    usage === null || Number.isInteger(usage) ? usage : Number(usage.toPrecision(3)),
    limit,
  ]);
  fill(at("gates"), ["Gate", "In use", "Limit"], gates, "none");
  const errors = snapshot.error_groups.map((group) => [
    group.type,
    group.route,
    group.count,
    new Date(group.last_seen * SECOND).toLocaleTimeString(),
    group.ref,
    group.fingerprint,
  ]);
  fill(at("errors"), ["Type", "Route", "Count", "Last seen", "Last ref", "Fingerprint"], errors, "none yet");
}

let said = "";
function say(text, alarm) {
  if (text === said) return; // or a screen reader would hear it every second
  at("state").textContent = said = text;
  at("state").classList.toggle("alarm", alarm);
}

async function ask(path, options) {
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  return response.json();
}

async function follow() {
  try {
    if (!document.hidden) show(await ask("./", { cache: "no-store" }));
  } catch (error) {
    say(`No answer from the server: ${error.message}`, true);
  }
  setTimeout(follow, SECOND);
}

at("drain").addEventListener("click", async () => {
  if (!confirm("Close all sessions with 1012, and refuse new ones until this process is restarted?")) return;
  at("drain").disabled = true;
  try {
    show(await ask("drain", { method: "POST" }));
  } catch (error) {
    say(`The drain failed: ${error.message}`, true);
  }
});

follow();
