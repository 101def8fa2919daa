// The server's log, line by line, and one record of it in full.

import { byId, element, pause } from "./dom.js";

const KEPT = 200;
const LIBRARY = /site-packages|\/lib\/python|\/asgi_closecodes\/|<frozen/;

const TRACES = ["exception.stacktrace", "code.stacktrace"];

const traceOf = (record) => TRACES.map((key) => record[key]).find(Boolean) ?? "";

function codeOf(record) {
  const name = record["event.name"] ?? "";
  if (name.startsWith("closecodes.drain")) return 1012;
  if (name.startsWith("closecodes.gate") || name.startsWith("closecodes.refusals")) return 1013;
  return record["websocket.close.code"] ?? (record.level === "error" ? 1011 : "");
}

export class Log {
  #list = byId("log");
  #byRef = new Map();

  clear() {
    this.#list.replaceChildren();
    byId("log-empty").hidden = false;
  }

  add(lines) {
    if (!lines.length) return;
    const list = this.#list;
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    for (const line of lines) {
      const record = JSON.parse(line);
      if (record["closecodes.error.id"]) this.#byRef.set(record["closecodes.error.id"], record);
      list.append(this.#line(record));
      byId("process").textContent = `process ${record["process.pid"]}`;
    }
    while (list.children.length > KEPT) list.firstChild.remove();
    if (follows) list.scrollTop = list.scrollHeight;
    byId("log-empty").hidden = true;
  }

  #line(record) {
    const ref = record["closecodes.error.id"];
    const time = element("time", { dateTime: record.timestamp }, new Date(record.timestamp).toTimeString().slice(0, 8));
    const message = element("span", { className: "message" });
    if (ref) {
      const [before] = record.message.split(`ref=${ref}`);
      message.append(before, "ref=", this.button(ref));
    } else {
      message.append(record.message.split("\n")[0]);
      const note = record["code.stacktrace"]
        ? "The event loop stood there; the line of yours is the last that stands out."
        : "This record has a stack trace, and nothing that a client could name to find it.";
      if (traceOf(record)) {
        const open = element("button", { type: "button", className: "ref" }, "stack trace");
        open.onclick = () => this.show(record, note);
        message.append(" ", open);
      }
    }
    const whole = element("button", { type: "button", className: "whole", title: "The whole record" }, "{ }");
    whole.setAttribute("aria-label", "The whole record");
    whole.onclick = () => this.show(record);
    const line = element("li", {}, time, message, whole);
    Object.assign(line.dataset, { code: codeOf(record), level: record.level, event: record["event.name"] ?? "" });
    return line;
  }

  /** A button that opens the record of `ref`. */
  button(ref, text = ref) {
    const button = element("button", { type: "button", className: "ref", title: `Open the stack trace of ${ref}` }, text);
    button.onclick = () => this.open(ref);
    return button;
  }

  async open(ref) {
    for (let attempts = 20; !this.#byRef.has(ref) && attempts; attempts--) await pause(50); // the client hears of it first
    const record = this.#byRef.get(ref);
    if (record) return this.show(record);
    this.show(
      { message: `ref=${ref}` },
      "Its record is not here: more than ten equal errors in a short time are counted and not written, or it has left this page’s last lines.",
    );
  }

  show(record, note = "") {
    const trace = traceOf(record);
    const type = record["exception.type"];
    byId("record-title").textContent = type ? `${type}: ${record["exception.message"]}` : record.message;
    byId("record-note").textContent =
      note || (record["closecodes.error.id"] ? `The client was told: “${record["websocket.close.reason"]}”. The stack trace stays here.` : "");
    byId("record-note").hidden = !byId("record-note").textContent;
    byId("record-trace").replaceChildren(...painted(trace));
    byId("record-trace").hidden = !trace;
    byId("record-keys").replaceChildren(
      ...Object.entries(record)
        .filter(([key]) => !TRACES.includes(key))
        .flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]),
    );
    byId("record").showModal();
  }
}

/** The lines of a stack trace; what is not a library's stands out. */
function painted(trace) {
  let own = false;
  return trace.trimEnd().split("\n").flatMap((line) => {
    const frame = /^\s*(?:\| )*\s*File "([^"]*)"/.exec(line);
    if (frame) own = !LIBRARY.test(frame[1]);
    const isText = !/^[\s|]/.test(line);
    if (isText && line && !/^(Traceback|Stack) \(/.test(line)) return [element("strong", {}, line), "\n"];
    return [own && !isText ? element("b", {}, line) : line, "\n"];
  });
}
