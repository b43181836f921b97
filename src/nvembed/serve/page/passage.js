// A passage of the results: title, place in its document, snippet around the marks, ranks, what can be done with it.
import { request } from "/page/api.js";
import { button, element, isVisible, ordinal, shownName } from "/page/dom.js";

const SNIPPET_CHARS = 360;
const LONG_CHARS = 6000; // longer texts scroll in a frame of their own
const LONG_LINES = 120;
const PLACES = ["page", "slide", "sheet"];
const SOURCES = ["url", "source", "link", "href", "uri"];
const SHOWN_FACTS = 4; // the others come with "more"
const NAMES = { vector: "meaning", text: "words" };
const words = new Intl.Segmenter(undefined, { granularity: "word" });

// Return a list item. `options`: `index`, the name of its index, or "" if there is only one; `link`, the address of this
// passage on the page; `open(expanded)`, called by "more" and "less"; `filter(name, value)`, or null; `body`, the request
// that found it; `cited`, whether the answer cites it.
export function passage(hit, options) {
  const { document: path, metadata } = hit;
  const title = typeof metadata.title === "string" && isVisible(metadata.title) ? metadata.title : null;
  const name = shownName(title ?? path) || "(no name)";
  const text = element("p", { class: "text", dir: "auto" });
  const spans = units(hit.text, hit.marks ?? []);
  const cut = snippet(hit.text, spans);
  const more = button("more", () => options.open(!item.classList.contains("open")), { class: "plain", "aria-expanded": "false" });
  more.hidden = cut.start === 0 && cut.end === hit.text.length && !/\n/.test(hit.text);
  const source = sourceOf(metadata);
  const facts = factsOf(metadata, source?.name, options.filter);
  const item = element("li", { tabindex: "-1" }, [
    element("h3", { dir: "auto" }, [element("a", { href: options.link }, [name])]),
    ...placeOf(hit, options.index, title !== null),
    text,
    element("div", { class: "facts" }, [
      ...(options.cited ? [element("span", { class: "badge" }, ["cited"])] : []),
      ...score(hit, options),
      ...facts,
    ]),
    element("div", { class: "actions" }, [
      more,
      copyButton("Copy text", () => hit.text),
      copyButton("Copy link", () => new URL(options.link, location.href).href),
      ...(source ? [source.link] : []),
    ]),
  ]);
  const long = hit.text.length > LONG_CHARS || hit.text.split("\n").length > LONG_LINES;
  item.classList.toggle("long", long);
  item.classList.toggle("cut", cut.start > 0 || cut.end < hit.text.length);
  item.dataset.id = hit.id;
  item.dataset.index = options.index;
  item.expand = (open) => {
    item.classList.toggle("open", open);
    more.textContent = open ? "less" : "more";
    more.setAttribute("aria-expanded", String(open));
    for (const [i, fact] of facts.entries()) fact.hidden = !open && i >= SHOWN_FACTS;
    const range = open ? { start: 0, end: hit.text.length } : cut;
    text.replaceChildren(marked(hit.text, spans, range));
    if (!isVisible(text.textContent)) text.replaceChildren(element("span", { class: "hint" }, ["(no visible text)"]));
    text.tabIndex = open && long ? 0 : -1; // it scrolls
  };
  item.expand(false);
  if (more.hidden) more.hidden = facts.length <= SHOWN_FACTS;
  item.querySelector("h3 a").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    options.open(true);
  });
  return item;
}

// Path, page, slide or sheet, and headings.
function placeOf(hit, index, titled) {
  const parts = [];
  if (index) parts.push(shownName(index, 60));
  if (titled) parts.push(shownName(hit.document));
  for (const name of PLACES) if (hit.metadata[name] !== undefined) parts.push(shownName(`${name} ${shown(hit.metadata[name])}`, 80));
  const { title, headings: all } = hit.metadata;
  const headings = Array.isArray(all) ? all.filter((heading) => heading !== title) : [];
  if (headings.length) parts.push(headings.map((heading) => shownName(shown(heading), 80)).join(" › "));
  if (!parts.length) return [];
  return [element("p", { class: "place" }, parts.map((part) => element("bdi", {}, [part])))];
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// The rest of the metadata; a field of a simple type is a button that filters by it.
function factsOf(metadata, source, filter) {
  const hidden = new Set(["title", "headings", source, ...PLACES]);
  return Object.entries(metadata)
    .filter(([name, value]) => !hidden.has(name) && value !== null && value !== "" && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => {
      const label = element("bdi", {}, [`${shownName(name, 40)}: ${shownName(Array.isArray(value) ? value.map(shown).join(", ") : shown(value), 80)}`]);
      const one = Array.isArray(value) && value.length === 1 ? value[0] : value;
      if (!filter || typeof one === "object" || String(one).length > 100) return element("span", {}, [label]);
      return button(label, () => filter(name, one), { class: "plain fact", title: "Only passages with this value" });
    });
}

// "meaning 2nd, words 1st", and the cosine when it is asked for.
function score(hit, { body, index }) {
  const ranks = Object.entries(hit.ranks ?? {}).map(([list, rank]) => `${NAMES[list] ?? list} ${ordinal(rank)}`);
  if (!ranks.length) return [];
  const show = button("cosine", async () => {
    show.disabled = true;
    try {
      const one = { ...body, mode: "vector", top: 1, where: [], id: hit.id, ...(index ? { indexes: [index] } : {}) };
      const { hits } = await request("/search", one);
      const value = element("span", { title: "Similarity of the passage to the query: 1 is the most, 0 is none." }, [`cosine ${hits[0].score.toFixed(3)}`]);
      show.replaceWith(value);
    } catch {
      show.textContent = "cosine: no answer";
      show.disabled = false;
    }
  }, { class: "plain fact", title: "Show how similar the passage is to the query" });
  return [element("span", {}, [ranks.join(", ")]), show];
}

export function copyButton(label, content) {
  const made = button(label, async () => {
    const copied = await copy(content());
    made.textContent = copied ? "Copied" : "Copying failed";
    setTimeout(() => { made.textContent = label; }, 2000);
  }, { class: "plain", "aria-live": "polite" });
  return made;
}

// Without HTTPS, and off this machine, browsers have no clipboard object: the older way needs a selection.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "unseen", readonly: "" });
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

// A link to the document on the web, if its metadata has one, and the name of that field.
function sourceOf(metadata) {
  for (const name of SOURCES) {
    const address = parsed(metadata[name]);
    if (address && ["http:", "https:"].includes(address.protocol)) {
      const attributes = { href: address.href, target: "_blank", rel: "noreferrer noopener nofollow" };
      return { name, link: element("a", attributes, [`Open ${shownName(address.host, 60)} ↗`]) };
    }
  }
  return null;
}

function parsed(text) {
  try {
    return typeof text === "string" ? new URL(text) : null;
  } catch {
    return null;
  }
}

// Marks count code points; JavaScript strings count UTF-16 units.
function units(text, marks) {
  const spans = [];
  let point = 0;
  let unit = 0;
  const advance = (to) => {
    for (; point < to && unit < text.length; point++) unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
    return unit;
  };
  for (const [start, end] of marks) spans.push([advance(start), advance(end)]);
  return spans;
}

// The part of a text with the most marks, from word to word.
function snippet(text, spans) {
  if (text.length <= SNIPPET_CHARS * 1.2) return { start: 0, end: text.length };
  let best = { start: 0, end: SNIPPET_CHARS };
  let most = -1;
  for (let i = 0, past = 0; i < spans.length; i++) {
    const start = Math.max(0, Math.min(spans[i][0] - SNIPPET_CHARS / 4, text.length - SNIPPET_CHARS));
    while (past < spans.length && spans[past][1] <= start + SNIPPET_CHARS) past++;
    if (past - i > most) [most, best] = [past - i, { start, end: start + SNIPPET_CHARS }];
  }
  return { start: atWord(text, best.start), end: atWord(text, best.end) };
}

// The beginning of the word at a place, in any script; of a huge word, the place itself.
function atWord(text, place) {
  if (place === 0 || place === text.length) return place;
  const from = Math.max(0, place - 60);
  const word = words.segment(text.slice(from, place + 60)).containing(place - from);
  if (word.index > 0) return from + word.index;
  return place + ((text.charCodeAt(place) & 0xfc00) === 0xdc00 ? 1 : 0); // not between the halves of a character
}

function marked(text, spans, { start, end }) {
  const parts = document.createDocumentFragment();
  parts.append(start > 0 ? "… " : "");
  let place = start;
  for (const [a, b] of spans) {
    if (b <= place || a >= end) continue;
    parts.append(text.slice(place, a), element("mark", {}, [text.slice(Math.max(a, place), Math.min(b, end))]));
    place = Math.min(b, end);
  }
  parts.append(text.slice(place, end), end < text.length ? " …" : "");
  return parts;
}
