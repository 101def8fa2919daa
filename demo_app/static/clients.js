// One client: a socket that comes back by the close code, and the tile that shows it.

import { chip, element } from "./dom.js";
import { ReconnectingWebSocket } from "./reconnecting-websocket.js";

export class Client {
  #log;
  #socket;
  #tries = 0;
  #retryAt;
  #crash = null;
  #state = element("span", { className: "state" });
  #attempt = element("span", { className: "attempt" });
  #end = element("div", { className: "end" });
  #until = element("span", { className: "until" });

  /** The codes that it was closed with so far, and how it was closed last: { code, reason, ref }. */
  codes = [];
  end = null;
  wasOpen = false;

  /** on.changed() is called after each change of state, on.closed(code) after each close. */
  constructor(number, path, protocols, log, on) {
    this.number = number;
    this.#log = log;
    const served = path.split("/").at(-1);
    const name = element("span", { className: "number" }, String(number));
    if (served !== "crash-on-message") this.#attempt.textContent = served;
    this.tile = element("li", { className: "tile" }, element("p", {}, name, this.#attempt, this.#state), this.#end);

    this.#socket = new ReconnectingWebSocket(`${location.origin.replace("http", "ws")}${path}`, { protocols, backoff: { cap: 15e3 } });
    this.#socket.addEventListener("connecting", () => {
      if (++this.#tries > 1) this.#attempt.textContent = `try ${this.#tries}`;
      this.#show();
      on.changed();
    });
    this.#socket.addEventListener("open", () => {
      this.wasOpen = true;
      this.#show();
      on.changed();
    });
    this.#socket.addEventListener("close", (event) => {
      if (!this.tile.isConnected) return; // closed by this page
      this.codes.push(event.code);
      this.#show();
      this.#showEnd(event);
      on.closed(event.code);
      on.changed();
    });
    this.#show();
  }

  /** connecting, open, waiting, closing or closed. */
  get state() {
    return this.#socket.state;
  }

  say(text) {
    this.#socket.send(text);
  }

  close() {
    this.tile.remove();
    this.#socket.close();
  }

  #show() {
    this.tile.dataset.state = this.state;
    this.tile.classList.remove("struck");
    this.#until.remove();
    this.#state.textContent = this.state === "connecting" ? "connecting…" : this.state;
  }

  #showEnd({ code, reason, retryIn }) {
    const ref = /ref=(\w+)/.exec(reason)?.[1];
    this.end = { code, reason, ref };
    this.tile.dataset.code = code;
    this.#end.title = reason;
    this.#end.replaceChildren(chip(code), ref ? reason.split(ref)[0] : reason || "no reason");
    if (ref) {
      this.#end.append(this.#log.button(ref));
      this.#crash = this.#log.button(ref, chip(code));
    } else if (this.#crash) {
      this.#end.prepend(this.#crash); // what came before stays within reach
    }
    if (retryIn === null) {
      this.#state.textContent = code === 1000 ? "done" : "gave up";
      return;
    }
    this.#retryAt = performance.now() + retryIn;
    this.#until.style.animationDuration = `${retryIn}ms`;
    this.tile.append(this.#until);
    this.count();
  }

  /** Count down to the next attempt. */
  count() {
    if (this.state !== "waiting") return;
    this.#state.textContent = `again in ${(Math.max(this.#retryAt - performance.now(), 0) / 1000).toFixed(1)} s`;
  }

  /** Point the eye at it, until something else happens to it. */
  strike() {
    this.tile.classList.add("struck");
  }
}
