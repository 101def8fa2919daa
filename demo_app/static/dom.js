export const byId = (id) => document.getElementById(id);

/** Make an element with properties and children; text stays text. */
export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A close code in its colour. */
export function chip(code) {
  const made = element("b", { className: "chip" }, String(code));
  made.dataset.code = code;
  return made;
}

export const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));
