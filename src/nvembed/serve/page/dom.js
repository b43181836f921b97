// Elements and texts.

// Return an element; its children are nodes, or text that is never parsed as markup.
export function element(name, attributes = {}, children = []) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

export function button(label, onClick, attributes = {}) {
  const made = element("button", { type: "button", class: "quiet", ...attributes }, [label]);
  made.addEventListener("click", onClick);
  return made;
}

export const byId = (id) => document.getElementById(id);
export const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// 1 -> "1st". Numbers are English, as the page is.
const plurals = new Intl.PluralRules("en", { type: "ordinal" });
export const ordinal = (number) => `${number}${{ one: "st", two: "nd", few: "rd", other: "th" }[plurals.select(number)]}`;
export const counted = (number, noun) => `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;

// A name from a file, on one line. Characters that cannot be seen could reverse or hide parts of it: a box replaces them.
const UNSEEN = /[\p{Cc}\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;
export function shownName(name, most = 200) {
  const line = name.slice(0, 4 * most).replace(/\s+/g, " ").trim().replace(UNSEEN, "\u25af");
  return line.length > most ? `${line.slice(0, most)}…` : line;
}

export const isVisible = (text) => /[\p{L}\p{N}\p{P}\p{S}]/u.test(text);
