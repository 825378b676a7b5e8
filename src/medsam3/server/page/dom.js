// Small pieces of the page that every part of it uses.

export const byId = (name) => document.getElementById(name);

export function element(tag, about = {}, ...children) {
  const { aria = {}, ...rest } = about;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
  made.append(...children);
  return made;
}

// Okabe and Ito's colours, distinct to colour-blind readers; the same order as in the overlays that are written.
export const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#ffffff"];

// "frame" of a video, "slice" of a volume.
export function partOf(about) {
  return about.kind === "video" ? "frame" : "slice";
}

export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function short(value) {
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
}
