// Open sessions against the limit, and closes by code, over the last minute.

const WINDOW = 60e3;
const PAUSE = 600; // between two messages of the server: its event loop stood still
const CODES = ["1011", "1013", "1012", "1006", "other"];
const [LEFT, RIGHT, TOP, BOTTOM, BARS, BETWEEN] = [30, 8, 12, 18, 48, 14];
const NICE = [5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500];
const nice = (value) => NICE.find((step) => step >= value) ?? value;

function draw(parent, kind, attributes, text) {
  const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", kind));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

export class Plot {
  #samples = []; // { at, open, limit }
  #closes = new Map(); // second -> { code: count }

  constructor(svg) {
    this.svg = svg;
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  sample(open, limit) {
    const now = performance.now();
    const last = this.#samples.at(-1);
    const isSame = last && this.#samples.at(-2)?.open === open && last.open === open && last.limit === limit && now - last.at < PAUSE;
    if (isSame && last.at - this.#samples.at(-2).at < PAUSE / 2) last.at = now;
    else this.#samples.push({ at: now, open, limit });
    while (this.#samples.length > 2 && this.#samples[1].at < now - WINDOW) this.#samples.shift();
  }

  closed(code) {
    const second = Math.floor(performance.now() / 1000);
    const counts = this.#closes.get(second) ?? {};
    const name = CODES.includes(String(code)) ? code : "other";
    counts[name] = (counts[name] ?? 0) + 1;
    this.#closes.set(second, counts);
    for (const old of this.#closes.keys()) if (old < second - WINDOW / 1000 - 1) this.#closes.delete(old);
  }

  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width) return;
    const now = performance.now();
    const samples = this.#samples;
    const latest = samples.at(-1);
    const most = Math.max(5, ...samples.map(({ open, limit }) => Math.max(open, limit ?? 0)));
    const top = nice(most * 1.05);
    const floor = height - BOTTOM - BARS - BETWEEN;
    const x = (at) => Math.max(LEFT, width - RIGHT - ((now - at) / WINDOW) * (width - LEFT - RIGHT));
    const y = (value) => floor - (value / top) * (floor - TOP);

    const svg = this.svg;
    svg.replaceChildren();
    for (const value of [0, top / 2, top]) {
      draw(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Math.round(y(value)), y2: Math.round(y(value)) });
      if (Number.isInteger(value)) draw(svg, "text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value);
    }
    for (const [ago, label, anchor] of [[60, "60 s ago", "start"], [30, "30 s", "middle"], [0, "now", "end"]]) {
      draw(svg, "text", { class: "tick", x: x(now - ago * 1000), y: height - 4, "text-anchor": anchor }, label);
    }

    // Runs of samples without a pause; each is a step function.
    let line = "", area = "", limits = "";
    samples.forEach(({ at, open, limit }, index) => {
      const previous = samples[index - 1];
      const pause = !previous || at - previous.at > PAUSE;
      if (previous && pause) {
        const rectangle = { class: "stall", x: x(previous.at), y: TOP, width: x(at) - x(previous.at), height: floor - TOP };
        draw(draw(svg, "rect", rectangle), "title", {}, "nothing heard from the server");
      }
      const [left, level] = [x(at).toFixed(1), y(open).toFixed(1)];
      line += pause ? `M${left} ${level}` : `H${left}V${level}`;
      area += pause ? `${previous ? `V${floor}Z` : ""}M${left} ${floor}V${level}` : `H${left}V${level}`;
      if (limit !== null) limits += previous && previous.limit !== null ? `H${left}V${y(limit).toFixed(1)}` : `M${left} ${y(limit).toFixed(1)}`;
    });
    if (latest) {
      draw(svg, "path", { class: "area", d: `${area}V${floor}Z` });
      draw(svg, "path", { class: "limit", d: limits });
      draw(svg, "path", { class: "line", d: line });
      if (latest.limit !== null) {
        draw(svg, "text", { class: "limit-label", x: width - RIGHT, y: y(latest.limit) - 6, "text-anchor": "end" }, `limit ${latest.limit}`);
      }
    }

    const base = height - BOTTOM;
    const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);
    const highest = nice(Math.max(5, ...[...this.#closes.values()].map(total)));
    const step = (width - LEFT - RIGHT) / (WINDOW / 1000);
    draw(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: base + 0.5, y2: base + 0.5 });
    draw(svg, "text", { class: "tick", x: LEFT - 6, y: base - BARS + 8, "text-anchor": "end" }, highest);
    for (const [second, counts] of this.#closes) {
      const right = x((second + 1) * 1000) - 1;
      let bottom = base;
      for (const code of CODES) {
        if (!counts[code]) continue;
        const tall = Math.max((counts[code] / highest) * BARS, 3);
        const bar = { class: "closes", "data-code": code, x: Math.max(LEFT, right - step + 1), y: bottom - tall, width: Math.max(step - 2, 1), height: tall, rx: 1 };
        draw(draw(svg, "rect", bar), "title", {}, `${counts[code]} × ${code}`);
        bottom -= tall;
      }
    }
  }

  /** Say the same in words. */
  describe(open, limit, counts) {
    const closes = Object.entries(counts).map(([code, count]) => `${count} closed with ${code}`);
    const label = `${open} sessions open${limit === null ? "" : `, the limit is ${limit}`}. ${closes.length ? closes.join(", ") : "None closed"}.`;
    if (this.svg.getAttribute("aria-label") !== label) this.svg.setAttribute("aria-label", label);
  }
}
