// Sign in, say, listen; and say again what a close has kept from being stored.

import { byId, chip, element } from "./dom.js";
import { ReconnectingWebSocket } from "./reconnecting-websocket.js";

let socket = null;
let me = null;
let retryAt = null; // while it waits
let pending = []; // until it comes back from the server

function join() {
  byId("sign-in").hidden = true;
  byId("room").hidden = false;
  byId("text").focus();
  socket = new ReconnectingWebSocket(`${location.origin.replace("http", "ws")}/rooms/hall`);
  socket.addEventListener("connecting", () => show("connecting…"));
  socket.addEventListener("open", () => {
    byId("messages").replaceChildren(); // the server tells the last ones again
    byId("messages-empty").hidden = false;
    show(`signed in as ${me}`);
    for (const text of pending) socket.send(text);
  });
  socket.addEventListener("message", ({ data }) => hear(JSON.parse(data)));
  socket.addEventListener("close", ({ code, reason, retryIn }) => {
    retryAt = retryIn === null ? null : performance.now() + retryIn;
    show(chip(code), reason || "no reason", element("span", { id: "again", ariaHidden: "true" }));
    count();
  });
}

function show(...parts) {
  byId("state").replaceChildren(...parts);
  byId("state").dataset.state = socket?.state ?? "";
}

function count() {
  const again = byId("again");
  if (!again || retryAt === null) return;
  again.textContent = ` · again in ${(Math.max(retryAt - performance.now(), 0) / 1000).toFixed(1)} s`;
}
setInterval(count, 100);

function hear({ name, text }) {
  const list = byId("messages");
  const line = element("li", { className: name === me ? "mine" : "" }, element("b", {}, name), text);
  list.append(line);
  byId("messages-empty").hidden = true;
  list.scrollTop = list.scrollHeight;
  if (name === me) pending = pending.filter((waiting) => waiting !== text);
}

byId("sign-in").onsubmit = async (event) => {
  event.preventDefault();
  const name = byId("name").value;
  const body = JSON.stringify({ name });
  const answer = await fetch("/sign-in", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (!answer.ok) return;
  me = name;
  join();
};

byId("say").onsubmit = (event) => {
  event.preventDefault();
  const text = byId("text").value;
  byId("text").value = "";
  pending.push(text);
  if (socket.state === "open") socket.send(text);
};

byId("slow").onclick = () => socket.state === "open" && socket.send("/slow");
