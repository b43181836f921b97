// The corpus in the plane: points of map.json on a canvas, which a mouse and a keyboard can move on.
import { byId, element, whole } from "/page/api.js";

const NEAR_PX = 14;

// Draw a map; `choose` is called with the point that is clicked. Answers `ring(ids)`: circle these points.
export function drawMap(content, choose) {
  const canvas = byId("map");
  const points = content.points;
  const names = new Map(content.clusters.map((cluster) => [cluster.cluster, cluster.name]));
  let ringed = new Set();
  let at = null; // the point under the cursor, or the keyboard's
  let only = null; // one cluster alone
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const hue = (cluster) => (cluster * 137.5 + 180) % 360;
  const colour = (cluster) => (cluster < 0 ? "gray" : `oklch(${dark.matches ? 0.75 : 0.58} 0.13 ${hue(cluster)})`);
  const size = () => ({ width: canvas.clientWidth, height: canvas.clientHeight });
  function place(point) {
    const { width, height } = size();
    const side = Math.min(width, height) - 24;
    return [(width - side) / 2 + point.x * side, (height + side) / 2 - point.y * side];
  }

  function draw() {
    const { width, height } = size();
    const scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const ink = getComputedStyle(canvas).color;
    const radius = points.length > 3000 ? 1.6 : points.length > 500 ? 2.5 : 4;
    for (const point of points) {
      pen.globalAlpha = only === null || point.cluster === only ? 0.8 : 0.1;
      pen.fillStyle = colour(point.cluster);
      pen.beginPath();
      pen.arc(...place(point), radius, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = ink;
    for (const point of points) {
      if (!ringed.has(point.id) && point !== at) continue;
      pen.lineWidth = point === at ? 3 : 1.5;
      pen.beginPath();
      pen.arc(...place(point), radius + 4, 0, 7);
      pen.stroke();
    }
  }

  function look(point) {
    if (point === at) return;
    at = point;
    byId("map-message").textContent = point ? `${names.get(point.cluster) ?? "no cluster"}: ${point.snippet}` : "";
    canvas.style.cursor = point ? "pointer" : "";
    draw();
  }

  function under(event) {
    let best = null;
    let least = NEAR_PX;
    for (const point of points) {
      const [x, y] = place(point);
      const far = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (far < least) [best, least] = [point, far];
    }
    return best;
  }

  // The nearest point within 45 degrees of a direction.
  function towards(dx, dy) {
    if (!at) return points[0];
    let best = at;
    let least = Infinity;
    for (const point of points) {
      const along = (point.x - at.x) * dx + (point.y - at.y) * dy;
      const aside = Math.abs((point.x - at.x) * dy - (point.y - at.y) * dx);
      if (along > 0 && aside <= along && along + aside < least) [best, least] = [point, along + aside];
    }
    return best;
  }

  canvas.addEventListener("mousemove", (event) => look(under(event)));
  canvas.addEventListener("click", (event) => {
    look(under(event));
    if (at) choose(at);
  });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key === "Enter" && at) choose(at);
    else if (event.key === "Escape") look(null);
    else if (steps[event.key]) look(towards(...steps[event.key]));
    else return;
    event.preventDefault();
  });

  const buttons = content.clusters.map((cluster) => {
    const dot = element("i");
    dot.style.background = colour(cluster.cluster);
    const button = element("button", { type: "button", class: "quiet", "aria-pressed": "false" }, [dot, cluster.name, ` ${whole.format(cluster.size)}`]);
    button.addEventListener("click", () => {
      only = only === cluster.cluster ? null : cluster.cluster;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button && only !== null));
      draw();
    });
    return button;
  });
  byId("clusters").replaceChildren(...buttons);
  dark.addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas);
  return { ring(ids) { ringed = new Set(ids); draw(); } };
}
