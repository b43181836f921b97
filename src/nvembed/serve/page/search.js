// The search page: the form, its state in the address, results. Answers are in ask.js, the map in map.js.
import { addressOf, MAX_TOP, readAddress, writeAddress } from "/page/address.js";
import { explained, Refused, request } from "/page/api.js";
import { conversation } from "/page/ask.js";
import { button, byId, counted, element, shownName } from "/page/dom.js";
import { mapOn } from "/page/map.js";
import { passage } from "/page/passage.js";

const TYPES = { string: "text", int: "whole number", float: "number", bool: "true or false", date: "date" };
let indexes = []; // the answers of /index, one for each
let mapped = ""; // name of the index whose map is drawn
let map = null;
let state = readAddress();
let body = null; // the request whose passages are shown
let running = null; // aborts the latest search

function say(text, bad = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", bad);
  byId("advice").hidden = true;
}

function advise(...choices) {
  byId("advice").hidden = false;
  byId("advice").replaceChildren(...choices.map(([label, act]) => button(label, act)));
}

const indexName = () => (indexes.length === 1 ? indexes[0].name : "");
const ofIndex = (hit) => (indexes.length > 1 ? hit.index : "");
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const smooth = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth");

function fromForm() {
  const names = [...document.querySelectorAll("#indexes input")];
  const some = names.filter((box) => box.checked);
  return {
    ...state,
    view: chosen("view"),
    q: byId("query").value.trim(),
    mode: chosen("mode"),
    where: byId("where").value.trim(),
    instruction: byId("instruction").value.trim(),
    indexes: some.length === names.length ? [] : some.map((box) => box.value),
  };
}

function toForm() {
  document.querySelector(`input[name=view][value=${state.view}]`).checked = true;
  document.querySelector(`input[name=mode][value=${state.mode}]`).checked = true;
  for (const name of ["where", "instruction"]) byId(name).value = state[name];
  byId("query").value = state.q;
  if (state.where || state.instruction) byId("more").open = true;
  for (const box of document.querySelectorAll("#indexes input")) box.checked = !state.indexes.length || state.indexes.includes(box.value);
  showView();
}

function showView() {
  const asks = state.view === "ask";
  document.body.dataset.view = state.view;
  byId("query-label").textContent = asks ? "Question" : "Query";
  byId("go").textContent = byId("action").textContent = asks ? "Ask" : "Search";
  byId("answers-card").hidden = !asks || !talk.turns.length;
  byId("query").placeholder = asks && talk.turns.length ? "Ask a follow-up question" : "";
  document.title = [state.q, indexName(), "nvembed"].filter(Boolean).map((part) => shownName(part, 60)).join(" · ");
}

// The fields that a search and a question share.
function bodyOf(from) {
  const made = { mode: from.mode, top: from.top, where: from.where ? [from.where] : [] };
  if (from.indexes.length) made.indexes = from.indexes;
  return made;
}

// Do what the form says; a search or a question is a step of the history.
function submit(change = {}) {
  const next = { ...fromForm(), hit: "", of: "", top: 10, ...change };
  if (!next.q) return;
  state = next;
  writeAddress(state);
  showView();
  if (state.view === "ask") talk.ask(state.q, { ...bodyOf(state), top: undefined });
  else search();
}

async function search() {
  running?.abort();
  const { signal } = (running = new AbortController());
  byId("where-error").textContent = "";
  byId("where").removeAttribute("aria-invalid");
  if (!state.q) return showNothing();
  const asked = { query: state.q, ...bodyOf(state), ...(state.instruction ? { instruction: state.instruction } : {}) };
  say("Searching …");
  byId("results").setAttribute("aria-busy", "true");
  try {
    const started = performance.now();
    const { hits } = await request("/search", asked, signal);
    if (signal.aborted) return;
    show(hits, asked);
    report(hits, (performance.now() - started) / 1000);
    if (state.hit) select(state.hit, state.of);
  } catch (error) {
    if (!signal.aborted) fail(error);
  } finally {
    if (!signal.aborted) byId("results").removeAttribute("aria-busy");
  }
}

function report(hits, seconds) {
  if (!hits.length) {
    say(state.mode === "text" ? "No passage has these words." : "No passage matches.");
    const choices = state.where ? [["Search without the filter", () => { byId("where").value = ""; submit(); }]] : [];
    if (state.mode === "text") choices.push(["Search by meaning", () => { pickMode("vector"); }]);
    if (choices.length) advise(...choices);
    return;
  }
  const found = `${counted(hits.length, "passage")} in ${seconds.toFixed(2)} s.`;
  const wordless = state.mode === "hybrid" && !hits.some((hit) => hit.ranks.text);
  say(wordless ? `${found} No passage has a word of the query: these are by meaning alone.` : found);
}

function fail(error) {
  body = null;
  showHits([]);
  if (error instanceof Refused && error.code === "bad_filter") {
    byId("more").open = true;
    byId("where").setAttribute("aria-invalid", "true");
    byId("where-error").textContent = error.message;
    byId("where").focus();
    return say("The filter cannot be used.", true);
  }
  say(explained(error), true);
  if (error instanceof Refused && error.code === "loading") {
    whenReady(running.signal, search);
    return say("The model is loading. The search begins when it is ready.");
  }
  if (!(error instanceof Refused) || error.status >= 429) advise(["Try again", search]);
}

function whenReady(signal, act) {
  document.addEventListener("status", function listen({ detail }) {
    if (detail !== "ready" && !signal.aborted) return;
    document.removeEventListener("status", listen);
    if (!signal.aborted) act();
  });
}

// Before the first query.
function showNothing() {
  body = null;
  say("");
  showHits([]);
  if (state.hit) select(state.hit, state.of);
}

function show(hits, asked, cited = []) {
  body = asked;
  showHits(hits, cited);
  byId("results").hidden = !hits.length;
  byId("more-hits").hidden = state.view === "ask" || hits.length < state.top || state.top >= MAX_TOP;
}

function showHits(hits, cited = []) {
  byId("results").hidden = true;
  byId("hits").replaceChildren(...hits.map((hit, i) => item(hit, cited.includes(i + 1))));
  unpick();
  map?.ring(hits.filter(isMapped).map((hit) => hit.id));
}

const isMapped = (hit) => (ofIndex(hit) || mapped) === mapped;

function item(hit, cited = false) {
  const of = ofIndex(hit);
  const made = passage(hit, {
    index: of,
    link: addressOf({ ...state, hit: hit.id, of }),
    body: { query: body?.query ?? hit.text.slice(0, 1000), mode: "vector", ...(body?.instruction ? { instruction: body.instruction } : {}) },
    cited,
    open: (expanded) => {
      if (expanded) return select(hit.id, of, { item: made, push: true });
      made.expand(false);
      made.classList.remove("chosen");
      if (state.hit === hit.id) writeAddress((state = { ...state, hit: "", of: "" }));
    },
    filter: state.view === "search" ? addFilter : null,
  });
  for (const happening of ["mouseenter", "focusin"]) made.addEventListener(happening, () => map?.point(isMapped(hit) ? hit.id : null));
  made.addEventListener("mouseleave", () => map?.point(null));
  return made;
}

// Open a passage: one of the list, or one from elsewhere, which is shown by itself.
async function select(id, of = "", { item: known = null, push = false } = {}) {
  const same = (one) => one.dataset.id === id && (!of || one.dataset.index === of);
  let target = known ?? [...byId("hits").children, ...byId("picked").children].find(same);
  if (push && (state.hit !== id || state.of !== of)) writeAddress((state = { ...state, hit: id, of }));
  try {
    target ??= await pick(id, of);
  } catch (error) {
    return say(explained(error), true);
  }
  if (!target) return say("The passage of this link is not in the index any more.", true);
  for (const other of document.querySelectorAll(".hits > .chosen")) other.classList.remove("chosen");
  target.classList.add("chosen");
  target.expand(true);
  map?.point((of || mapped) === mapped ? id : null);
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest", behavior: smooth() });
}

async function pick(id, of) {
  const query = state.q || "passage";
  const { hits } = await request("/search", { query, mode: "vector", top: 1, id, ...(of ? { indexes: [of] } : {}) });
  if (!hits.length) return null;
  hits[0].ranks = {}; // it is the only one that was compared
  byId("picked-card").hidden = false;
  byId("picked").replaceChildren(item(hits[0]));
  return byId("picked").firstElementChild;
}

function unpick() {
  byId("picked-card").hidden = true;
  byId("picked").replaceChildren();
}

function addFilter(name, value) {
  const condition = `${fieldName(name)} = ${typeof value === "string" ? quoted(value) : value}`;
  const where = byId("where");
  if (!where.value.includes(condition)) where.value = where.value.trim() ? `${where.value.trim()} and ${condition}` : condition;
  byId("more").open = true;
  submit();
}

const fieldName = (name) => (/^[^\s=!<>"']+$/.test(name) ? name : quoted(name));
const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

function pickMode(mode) {
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  submit();
}

// Go to what the address says.
function arrive() {
  const before = state;
  state = readAddress();
  toForm();
  const rest = ({ hit, of, ...others }) => JSON.stringify(others);
  if (rest(before) === rest(state) && (body || state.view === "ask")) { // only the open passage differs
    for (const one of document.querySelectorAll(".hits > .chosen")) [one.expand(false), one.classList.remove("chosen")];
    if (state.hit) select(state.hit, state.of);
    else unpick();
  } else if (state.view === "search") search();
  else recall();
}

// Show the answer to the question of the address, if it was asked here.
function recall() {
  running?.abort();
  talk.restore(state.q);
  if (state.hit) select(state.hit, state.of);
}

function listen() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  for (const choice of document.querySelectorAll("input[name=mode], #indexes input")) {
    choice.addEventListener("change", () => { if (state.view === "search") submit(); });
  }
  for (const choice of document.querySelectorAll("input[name=view]")) {
    choice.addEventListener("change", () => {
      state = { ...fromForm(), hit: "", of: "" };
      writeAddress(state);
      showView();
      if (state.view === "search") search();
      else recall();
    });
  }
  byId("more-hits").addEventListener("click", async () => {
    const seen = byId("hits").children.length;
    state = { ...state, top: Math.min(MAX_TOP, state.top + 10) };
    writeAddress(state, { replace: true });
    await search();
    byId("hits").children[seen]?.focus();
  });
  byId("unpick").addEventListener("click", () => {
    unpick();
    map?.point(null);
    writeAddress((state = { ...state, hit: "", of: "" }));
    (map ? byId("map") : byId("query")).focus();
  });
  addEventListener("popstate", arrive);
  document.addEventListener("keydown", onKey);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const writing = event.target.matches("input:not([type=radio], [type=checkbox]), textarea, dialog *");
  const hit = event.target.closest?.(".hits > li");
  const onItem = event.target === hit; // not on a button in it
  if (event.key === "/" && !writing) byId("query").select();
  else if (event.key === "ArrowDown" && event.target === byId("query") && byId("hits").firstElementChild) byId("hits").firstElementChild.focus();
  else if (event.key === "ArrowDown" && onItem) hit.nextElementSibling?.focus();
  else if (event.key === "ArrowUp" && onItem) (hit.previousElementSibling ?? byId("query")).focus();
  else if (event.key === "Enter" && onItem) hit.querySelector("h3 a").click();
  else if (event.key === "Escape" && hit) byId("query").focus();
  else return;
  event.preventDefault();
}

function describe() {
  byId("index-name").textContent = shownName(indexName(), 80);
  const fields = Object.assign({}, ...indexes.map((one) => one.fields));
  byId("fields").replaceChildren("Fields:", ...Object.entries(fields).map(([name, kind]) => {
    const list = kind.endsWith("[]");
    const type = TYPES[kind.replace("[]", "")] ?? kind;
    return button(shownName(name, 40), () => {
      const field = byId("where");
      field.value = `${field.value.trim()}${field.value.trim() ? " and " : ""}${fieldName(name)} = `;
      field.focus();
    }, { class: "quiet small", title: list ? `list; = means contains (${type})` : type });
  }));
  byId("indexes").hidden = indexes.length < 2;
  byId("indexes").append(...indexes.map(({ name }) => element("label", {}, [element("input", { type: "checkbox", value: name, checked: "" }), ` ${shownName(name, 60)}`])));
}

async function showMaps() {
  const names = indexes.filter((one) => one.map).map((one) => one.name);
  if (!names.length) return;
  byId("map-card").hidden = false;
  const choice = byId("map-index");
  choice.replaceChildren(...names.map((name) => element("option", { value: name }, [shownName(name, 60)])));
  choice.parentElement.hidden = names.length < 2;
  map = mapOn(byId("map"), (point) => select(point.id, indexes.length > 1 ? mapped : "", { push: true }));
  const load = async () => {
    mapped = choice.value;
    map.load(await request(`/index/map?name=${encodeURIComponent(mapped)}`));
  };
  choice.addEventListener("change", () => load().catch((error) => say(explained(error), true)));
  await load();
}

async function start() {
  try {
    const first = await request("/index");
    const others = (first.indexes ?? []).filter((name) => name !== first.name);
    indexes = [first, ...await Promise.all(others.map((name) => request(`/index?name=${encodeURIComponent(name)}`)))];
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) {
      say(explained(error), true);
      return advise(["Try again", start]);
    }
    byId("go").disabled = byId("query").disabled = true;
    return say("This server has no index to search. Start it with --index FOLDER.", true);
  }
  say("");
  describe();
  byId("views").hidden = !indexes[0].ask;
  if (!indexes[0].ask) state.view = "search";
  listen();
  toForm();
  await showMaps().catch((error) => say(explained(error), true));
  if (state.view === "search") search();
  else recall();
}

// An answer may arrive after its reader went back to the search.
const whileAsking = (act) => (...values) => (state.view === "ask" ? act(...values) : null);
const talk = conversation({ show: whileAsking(show), say: whileAsking(say), select: (hit, options) => select(hit.id, ofIndex(hit), options) });
await start();
