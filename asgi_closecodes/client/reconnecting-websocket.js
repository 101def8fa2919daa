// A WebSocket that comes back when that is worth it, and no sooner than the server can bear. Times are milliseconds.
//
//   const socket = new ReconnectingWebSocket("/chat");
//   socket.addEventListener("message", ({ data }) => …);
//   socket.addEventListener("close", ({ code, reason, retryIn }) => …); // retryIn: until the next attempt; null: none

const RETRIED = [1001, 1006, 1012, 1013, 1014, 4012, 4013]; // 4011 to 4013: of servers that cannot send 1011 to 1013
const CRASHES = [1011, 4011];
const OVERLOADS = [1013, 4013];

/** When to come back after each close: the rule of asgi_closecodes.client.Backoff. */
export class Backoff {
  #attempts = 0;
  #crashes = 0;
  #openedAt = Infinity;
  #heard = false;

  /** cap, maxHint: the longest wait of its own, and for a server's hint; maxCrashes: this many 1011 in a row are the end; retry: more codes to retry. */
  constructor({ cap = 60e3, maxHint = 600e3, maxCrashes = 5, retry = [], random = Math.random, now = () => performance.now() } = {}) {
    Object.assign(this, { cap, maxHint, maxCrashes, retry, random, now });
  }

  opened() {
    this.#openedAt = this.now();
  }

  received() {
    this.#heard = true;
  }

  /** Return how long to wait before the next attempt, or null if there should be none. */
  closed(code, reason = "") {
    const crashed = CRASHES.includes(code);
    // Being accepted proves nothing: a full server accepts in order to close, and a reset there makes a tight loop.
    if (this.now() - this.#openedAt >= 5000 || (this.#heard && !crashed)) this.#attempts = this.#crashes = 0;
    [this.#openedAt, this.#heard] = [Infinity, false];
    this.#crashes = crashed ? this.#crashes + 1 : 0;
    if (crashed ? this.#crashes >= this.maxCrashes : ![...RETRIED, ...this.retry].includes(code)) return null;
    const given = [...reason.matchAll(/; *retry_after=([0-9]+(?:\.[0-9]+)?) *(?=;|$)/g)].at(-1)?.[1]; // the last is the server's own
    const assumed = OVERLOADS.includes(code) ? 2000 * (1 + this.random()) : 0;
    const hint = given ? Math.min(1000 * given, this.maxHint) : assumed;
    return Math.max(hint, this.random() * Math.min(this.cap, 1000 * 2 ** this.#attempts++));
  }
}

/** Dispatches connecting, open, message and close, over and over; the last event is a close whose retryIn is null. */
export class ReconnectingWebSocket extends EventTarget {
  #socket;
  #timer;

  /** url, protocols, binaryType: as WebSocket's; backoff: the options of Backoff. state is the name of what it is doing. */
  constructor(url, { protocols = [], binaryType = "blob", backoff = {} } = {}) {
    super();
    Object.assign(this, { url, protocols, binaryType, backoff: new Backoff(backoff) });
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
    socket.onclose = (event) => this.#closed(event, this.backoff.closed(event.code, event.reason));
    this.#become("connecting", new Event("connecting"));
  }

  #closed({ code, reason, wasClean }, wait) {
    const retryIn = this.state === "closing" ? null : wait;
    if (retryIn !== null) this.#timer = setTimeout(() => this.#connect(), retryIn);
    this.#become(retryIn === null ? "closed" : "waiting", Object.assign(new CloseEvent("close", { code, reason, wasClean }), { retryIn }));
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
