// A WebSocket that reconnects by the close code, as fast as the server can bear. Times are milliseconds.
//
//   const socket = new ReconnectingWebSocket("/chat");
//   socket.addEventListener("message", ({ data }) => …);
//   socket.addEventListener("close", ({ code, reason, retryIn }) => …); // retryIn: until the next attempt; null: none

const RETRIABLE = [1001, 1006, 1012, 1013, 1014, 3008, 4012, 4013]; // 4011 to 4013: from servers that cannot send 1011 to 1013
const INTERNAL_ERRORS = [1011, 4011];
const OVERLOADS = [1013, 4013];
const UNAUTHORIZED = 3000;
const RESET_AFTER_MS = 5000; // open time after which a session resets the back-off
const NUMBER = "[0-9]+(?:\\.[0-9]+)?";
const TOKEN = "[A-Za-z0-9_.-]{1,32}";

/** Return the last valid value of a parameter of a close reason, or null. The last is the server's own. */
function parameter(reason, name, value) {
  return [...reason.matchAll(new RegExp(`; *${name}=(${value}) *(?=;|$)`, "g"))].at(-1)?.[1] ?? null;
}

/** Return the options that are given over the defaults. An unknown one would be ignored in silence. */
function chosen(what, defaults, options, ...more) {
  const known = `${what}: known are ${Object.keys(defaults).join(", ")}`;
  const kind = Object.prototype.toString.call(options).slice(8, -1); // its value may be a secret
  if (kind !== "Object") throw new TypeError(`${kind} instead of an object of ${known}`);
  const unknown = Object.keys(options).filter((name) => !Object.hasOwn(defaults, name));
  if (unknown.length) throw new TypeError(`no option ${unknown.join(", ")}, of ${known}`);
  if (more.length) throw new TypeError(`too many arguments, of ${known}`);
  return { ...defaults, ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) };
}

/** The reconnect rule of asgi_closecodes.client.Backoff. */
export class Backoff {
  #attempts = 0;
  #crashes = 0;
  #openedAt = Infinity;
  #hasReceived = false;
  #hasRenewed = false;

  /** cap, maxHint: longest wait of its own, and for a server's hint. maxCrashes: number of 1011 in a row that is the last. retry: more codes to retry. */
  constructor(options = {}) {
    const defaults = { cap: 60e3, maxHint: 600e3, maxCrashes: 5, retry: [], random: Math.random, now: () => performance.now() };
    Object.assign(this, chosen("options of the back-off", defaults, options));
    for (const name of ["cap", "maxHint", "maxCrashes"])
      if (!Number.isFinite(this[name]) || this[name] <= 0) throw new TypeError(`${name} is ${this[name]}: use a number above 0`);
  }

  opened() {
    this.#openedAt = this.now();
  }

  received() {
    this.#hasReceived = true;
  }

  /** Return the time until the next attempt, or null to give up. canRenew: whether new credentials are got after 3000. */
  closed(code, reason = "", canRenew = false) {
    const crashed = INTERNAL_ERRORS.includes(code);
    const wasLong = this.now() - this.#openedAt >= RESET_AFTER_MS;
    // Opening alone resets nothing: a full server accepts in order to close, and a reset there makes a tight loop.
    if (wasLong || (this.#hasReceived && !crashed)) this.#attempts = this.#crashes = 0;
    if (wasLong) this.#hasRenewed = false;
    [this.#openedAt, this.#hasReceived] = [Infinity, false];
    this.#crashes = crashed ? this.#crashes + 1 : 0;
    const given = parameter(reason, "retry_after", NUMBER);
    if (code === UNAUTHORIZED && canRenew && !this.#hasRenewed) {
      this.#hasRenewed = true;
      return Math.min(1000 * (given ?? 0), this.maxHint);
    }
    if (crashed ? this.#crashes >= this.maxCrashes : ![...RETRIABLE, ...this.retry].includes(code)) return null;
    const assumed = OVERLOADS.includes(code) ? 2000 * (1 + this.random()) : 0;
    const hint = given ? Math.min(1000 * given, this.maxHint) : assumed;
    return Math.max(hint, this.random() * Math.min(this.cap, 1000 * 2 ** this.#attempts++));
  }
}

/** Dispatches connecting, open, message and close, over and over. The last event is a close whose retryIn is null. */
export class ReconnectingWebSocket extends EventTarget {
  #socket;
  #timer;
  #renew;

  /**
   * url, protocols, binaryType: as WebSocket's. backoff: options of Backoff.
   * renew: a function, async or not, that gets new credentials after 3000, before the next attempt. It returns
   * { url, protocols }, or one of them, or nothing. If it throws, a last close event has the error as renewError.
   */
  constructor(url, options = {}, ...more) {
    super();
    if (typeof url === "function") throw new TypeError("url is a function: give a string or a URL; new ones come from renew");
    const defaults = { protocols: [], binaryType: "blob", backoff: {}, renew: null };
    const { renew, backoff, ...rest } = chosen("options", defaults, options, ...more);
    if (renew !== null && typeof renew !== "function") throw new TypeError("renew is not a function");
    this.#renew = renew;
    Object.assign(this, { url, ...rest, backoff: new Backoff(backoff) });
    this.#connect();
  }

  #become(state, event) {
    this.state = state; // connecting, open, waiting, closing, closed
    this.dispatchEvent(event);
  }

  #connect() {
    const socket = (this.#socket = new WebSocket(this.url, this.protocols));
    socket.binaryType = this.binaryType;
    socket.onopen = () => (this.backoff.opened(), this.#become("open", new Event("open")));
    socket.onmessage = ({ data, origin }) => (this.backoff.received(), this.dispatchEvent(new MessageEvent("message", { data, origin })));
    socket.onclose = (event) => this.#closed(event, this.backoff.closed(event.code, event.reason, this.#renew !== null));
    this.state = "connecting";
    // Later, since nobody can listen before the constructor returns.
    queueMicrotask(() => this.state === "connecting" && this.dispatchEvent(new Event("connecting")));
  }

  #closed({ code, reason, wasClean }, wait, renewError = null) {
    const retryIn = this.state === "closing" ? null : wait;
    const hint = parameter(reason, "retry_after", NUMBER);
    const said = { ref: parameter(reason, "ref", TOKEN), cause: parameter(reason, "cause", TOKEN), retryAfter: hint && 1000 * hint };
    const event = Object.assign(new Event("close"), { code, reason, wasClean, retryIn, renewError, ...said }); // Node has no CloseEvent
    const reconnect = () => (code === UNAUTHORIZED && this.#renew ? this.#renewAndConnect(event) : this.#connect());
    if (retryIn !== null) this.#timer = setTimeout(reconnect, retryIn);
    this.#become(retryIn === null ? "closed" : "waiting", event);
  }

  async #renewAndConnect(event) {
    try {
      const changes = (await this.#renew()) ?? {};
      const { url = this.url, protocols = this.protocols, ...unknown } = changes;
      if (typeof changes !== "object" || Object.keys(unknown).length) throw new TypeError("renew has to return { url, protocols } or nothing");
      if (this.state !== "waiting") return; // closed meanwhile
      Object.assign(this, { url, protocols });
      this.#connect();
    } catch (error) {
      if (this.state === "waiting") this.#closed(event, null, error);
    }
  }

  get protocol() {
    return this.#socket.protocol;
  }

  send(data) {
    if (this.state !== "open") throw new DOMException(`not sent, since the socket is ${this.state}`, "InvalidStateError");
    this.#socket.send(data);
  }

  /** Close for good. */
  close(code = 1000, reason = "") {
    clearTimeout(this.#timer);
    if (this.state === "connecting" || this.state === "open") this.#socket.close(code, reason);
    const waited = this.state === "waiting";
    if (this.state !== "closed") this.state = "closing";
    if (waited) this.#closed({ code, reason, wasClean: true }, null);
  }
}

for (const name of ["onopen", "onmessage", "onclose", "onerror"]) {
  const set = () => {
    throw new TypeError(`there is no ${name}: use addEventListener`);
  };
  Object.defineProperty(ReconnectingWebSocket.prototype, name, { set });
}
