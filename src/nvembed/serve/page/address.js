// What is shown, as the query of the page's address: it can be shared, and the browser's back and forward buttons work.
// { view, q, mode, where, instruction, top, indexes, hit, of }; `hit` is the id of an open passage, `of` its index.
const DEFAULTS = { view: "search", q: "", mode: "hybrid", where: "", instruction: "", top: 10, hit: "", of: "" };
const CHOICES = { view: ["search", "ask"], mode: ["hybrid", "vector", "text"] };
export const MAX_TOP = 100;

export function readAddress() {
  const fields = new URLSearchParams(location.search);
  const state = { indexes: fields.getAll("index") };
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = fields.get(name) ?? usual;
    state[name] = CHOICES[name] && !CHOICES[name].includes(value) ? usual : value;
  }
  state.top = Math.min(MAX_TOP, Math.max(1, Math.trunc(Number(state.top)) || DEFAULTS.top));
  return state;
}

export function addressOf(state) {
  const fields = new URLSearchParams();
  for (const [name, usual] of Object.entries(DEFAULTS)) if (state[name] !== usual && state[name] !== "") fields.set(name, state[name]);
  for (const name of state.indexes) fields.append("index", name);
  return `${location.pathname}${fields.size ? `?${fields}` : ""}`;
}

// Put a state into the address: as a new step of the history, or in place of the current one.
export function writeAddress(state, { replace = false } = {}) {
  const address = addressOf(state);
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}
