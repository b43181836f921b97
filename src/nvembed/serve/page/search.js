// Search results with marked words, and the map of the corpus.
import { ask, byId, element } from "/page/api.js";
import { drawMap } from "/page/map.js";

let map = null;
let latest = 0; // only the latest search's answer is shown

function say(text, bad = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", bad);
}

async function search(extra = {}) {
  const turn = ++latest;
  const query = byId("query").value.trim();
  if (!query) return;
  const where = byId("where").value.trim();
  const instruction = byId("instruction").value.trim();
  const mode = document.querySelector("input[name=mode]:checked").value;
  const body = { query, mode, top: Number(byId("top").value) || 10, where: where ? [where] : [], ...extra };
  if (instruction) body.instruction = instruction;
  say("Searching …");
  byId("go").disabled = true;
  try {
    const started = performance.now();
    const { hits } = await ask("/search", body);
    if (turn !== latest) return;
    show(hits);
    say(hits.length ? `${hits.length} passages in ${((performance.now() - started) / 1000).toFixed(2)} s` : "No passages found.");
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer." : error.message, true);
    if (/filter|field/.test(error.message)) byId("more").open = true;
  } finally {
    if (turn === latest) byId("go").disabled = false;
  }
}

function show(hits) {
  byId("results").hidden = false;
  byId("hits").replaceChildren(...hits.map(passage));
  map?.ring(hits.map((hit) => hit.id));
}

function passage(hit) {
  const facts = Object.entries(hit.metadata).map(([name, value]) => element("span", {}, [`${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`]));
  const ranks = Object.entries(hit.ranks).map(([mode, rank]) => `${mode} ${rank}`).join(", ");
  return element("li", { tabindex: "-1" }, [
    element("h3", { dir: "auto" }, [hit.document]),
    element("p", { class: "text", dir: "auto" }, marked(hit.text, hit.marks)),
    element("p", { class: "facts" }, [element("span", { title: `rank by ${ranks}` }, [`score ${hit.score.toFixed(3)}`]), element("span", {}, [hit.id]), ...facts]),
  ]);
}

// Marks count code points; JavaScript strings count UTF-16 units.
function marked(text, marks) {
  const points = Array.from(text);
  const parts = [];
  let place = 0;
  for (const [start, end] of marks) {
    parts.push(points.slice(place, start).join(""), element("mark", {}, [points.slice(start, end).join("")]));
    place = end;
  }
  return [...parts, points.slice(place).join("")];
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
for (const choice of document.querySelectorAll("input[name=mode]")) choice.addEventListener("change", () => search());

document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input, textarea, dialog *");
  const hit = event.target.closest?.("#hits > li");
  if (event.key === "/" && !writing) byId("query").focus();
  else if (event.key === "ArrowDown" && event.target === byId("query")) byId("hits").firstElementChild?.focus();
  else if (event.key === "ArrowDown" && hit) hit.nextElementSibling?.focus();
  else if (event.key === "ArrowUp" && hit) (hit.previousElementSibling ?? byId("query")).focus();
  else return;
  event.preventDefault();
});

const about = await ask("/index").catch(() => null);
if (!about) {
  say("This server has no index. Start it with --index.", true);
  byId("go").disabled = true;
} else {
  byId("index-name").textContent = about.name;
  const names = Object.entries(about.fields).map(([name, kind]) => {
    const button = element("button", { type: "button", class: "quiet", title: kind }, [name]);
    button.addEventListener("click", () => {
      const field = byId("where");
      const shown = /^[^\s=!<>"']+$/.test(name) ? name : `"${name}"`;
      field.value = `${field.value.trim()}${field.value.trim() ? " and " : ""}${shown} = `;
      field.focus();
    });
    return button;
  });
  byId("fields").append("Fields:", ...names);
  if (about.map) {
    byId("map-card").hidden = false;
    map = drawMap(await ask("/index/map"), (point) => {
      byId("query").value = point.snippet;
      search({ mode: "vector", top: 1, where: [], id: point.id });
    });
  }
}
