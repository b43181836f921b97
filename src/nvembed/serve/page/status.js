// The server's figures, once a second while the page is seen.
import { Refused, request } from "/page/api.js";
import { byId, element, whole } from "/page/dom.js";

const EVERY_MS = 1000;
const KEPT = 120; // readings drawn: two minutes
const speeds = [];

function put(id, text) {
  if (byId(id) && byId(id).textContent !== text) byId(id).textContent = text;
}

function show(stats) {
  showStatus(stats.status);
  byId("to-search").hidden = !stats.indexes.length;
  if (!byId("spark")) return; // the search page has the status line only
  put("model", stats.model);
  put("at-work", whole.format(stats.requests_at_work - 1)); // without the one that asked
  put("uptime", `up for ${duration(stats.uptime_s)}`);
  put("tokens-per-s", whole.format(stats.tokens_per_s));
  speeds.push(stats.tokens_per_s);
  if (speeds.length > KEPT) speeds.shift();
  draw();
  if (!stats.queue) return; // still loading
  put("facts", `${whole.format(stats.dim)} dimensions, ${stats.dtype}, texts of up to ${whole.format(stats.max_length)} tokens`);
  put("queue", whole.format(stats.queue.tokens));
  put("queue-note", `of ${whole.format(stats.queue.limit_tokens)} tokens; ${lanes(stats.queue.texts)}`);
  byId("queue-meter").value = stats.queue.tokens / stats.queue.limit_tokens;
  put("total-texts", `${whole.format(stats.total.texts)} texts`);
  put("total-note", `${whole.format(stats.total.tokens)} tokens, ${whole.format(stats.total.refused)} refused`);
  byId("devices").hidden = false;
  const rows = stats.devices.map((device) =>
    element("tr", {}, [
      element("th", { scope: "row" }, [device.name]),
      element("td", {}, [whole.format(device.tokens_at_work)]),
      element("td", {}, [whole.format(device.batch_budget_tokens)]),
    ]),
  );
  byId("devices").tBodies[0].replaceChildren(...rows);
}

// Tell the other scripts of the page when the status changes.
function showStatus(status) {
  if (byId("dot").dataset.status !== status) document.dispatchEvent(new CustomEvent("status", { detail: status }));
  put("status", status === "gone" ? "no answer" : status);
  byId("dot").dataset.status = status;
}

function draw() {
  const top = Math.max(1, ...speeds);
  const points = speeds.map((speed, i) => `${((KEPT - speeds.length + i) * 240) / (KEPT - 1)},${46 - (44 * speed) / top}`);
  const first = points[0].split(",")[0];
  const [area, line] = byId("spark").children;
  line.setAttribute("d", `M${points.join("L")}`);
  area.setAttribute("d", `M${first},48L${points.join("L")}L240,48Z`);
  put("spark-note", `over the last two minutes; at most ${whole.format(Math.max(...speeds))}`);
}

// Which texts wait, by lane.
function lanes(texts) {
  const some = Object.entries(texts).filter(([, count]) => count);
  return some.length ? `waiting texts: ${some.map(([lane, count]) => `${whole.format(count)} ${lane}`).join(", ")}` : "no waiting texts";
}

function duration(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

async function poll() {
  if (!document.hidden) {
    try {
      show(await request("/stats"));
    } catch (error) {
      showStatus(error instanceof Refused ? "failing" : "gone");
    }
  }
  setTimeout(poll, EVERY_MS);
}

poll();
