// The corpus in the plane: the points of map.json on a canvas, with the names of clusters. A mouse, fingers and a keyboard
// move over it and zoom.
import { byId, element, shownName, whole } from "/page/dom.js";

const NEAR_PX = 14;
const MOVED_PX = 4; // a pointer that moved less has clicked
const MARGIN_PX = 14;
const MAX_ZOOM = 60;
const LABEL_FONT = '600 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';
const LABEL_CHARS = 34;

// Make the canvas a map; `choose(point)` is called for a point that is clicked.
// Returns { load(content), ring(ids), point(id or null) }: draw a map; circle the passages that were found; emphasise one.
export function mapOn(canvas, choose) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const view = { zoom: 1, x: 0, y: 0 }; // a place p of the whole map is drawn at p * zoom + (x, y)
  let points = [];
  let known = new Map(); // id -> point
  let clusters = new Map(); // number -> cluster
  let extent = { x: 1, y: 1 };
  let ringed = new Set();
  let at = null; // the point under the cursor, or the keyboard's
  let held = null; // the point of the open passage
  let only = null; // one cluster alone

  // Older maps have no colours.
  const colour = (number) => clusters.get(number)?.color ?? (number < 0 ? "#8a9196" : `hsl(${(number * 137.5 + 180) % 360} 55% 50%)`);
  const size = () => ({ width: canvas.clientWidth, height: canvas.clientHeight });

  function load(content) {
    points = content.points;
    known = new Map(points.map((point) => [point.id, point]));
    clusters = new Map(content.clusters.map((cluster) => [cluster.cluster, cluster]));
    const most = (axis) => points.reduce((high, point) => Math.max(high, point[axis]), 1e-9);
    extent = { x: most("x"), y: most("y") };
    at = held = only = null;
    byId("clusters").replaceChildren(...legend(content, colour, (cluster) => {
      only = cluster;
      draw();
    }));
    zoom(0);
  }

  function place({ x, y }) {
    const { width, height } = size();
    const scale = Math.min((width - 2 * MARGIN_PX) / extent.x, (height - 2 * MARGIN_PX) / extent.y);
    const left = (width - scale * extent.x) / 2 + scale * x;
    const top = (height + scale * extent.y) / 2 - scale * y;
    return [left * view.zoom + view.x, top * view.zoom + view.y];
  }

  function draw() {
    const { width, height } = size();
    const scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const radius = (points.length > 3000 ? 1.6 : points.length > 500 ? 2.5 : 4) * Math.min(2, view.zoom ** 0.4);
    for (const faint of only === null ? [false] : [true, false]) {
      for (const point of points) {
        if (only !== null && (point.cluster === only) === faint) continue;
        pen.globalAlpha = faint ? 0.12 : 0.8;
        pen.fillStyle = colour(point.cluster);
        disc(pen, point, radius);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    const { color: ink } = getComputedStyle(canvas);
    const { backgroundColor: paper } = getComputedStyle(byId("map-card"));
    label(pen, ink, paper, width, height);
    for (const point of points) {
      const found = ringed.has(point.id);
      const special = point === at || point === held;
      if (!found && !special) continue;
      pen.fillStyle = colour(point.cluster);
      disc(pen, point, radius + 1);
      pen.fill();
      for (const [style, wide] of [[paper, special ? 6 : 4], [ink, special ? 3 : 1.8]]) {
        pen.strokeStyle = style;
        pen.lineWidth = wide;
        disc(pen, point, radius + 4);
        pen.stroke();
      }
    }
  }

  function disc(pen, point, radius) {
    pen.beginPath();
    pen.arc(...place(point), radius, 0, 7);
  }

  // Names of clusters, the largest first; one that would cover another is left out.
  function label(pen, ink, paper, width, height) {
    pen.font = LABEL_FONT;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    const taken = [];
    const shown = only === null ? [...clusters.values()].sort((a, b) => b.size - a.size) : [clusters.get(only)];
    for (const cluster of shown) {
      if (!cluster || cluster.x === null || taken.length >= 40) continue;
      const name = shownName(cluster.name, LABEL_CHARS);
      const half = pen.measureText(name).width / 2 + 4;
      let [x, y] = place(cluster);
      if (x < 0 || x > width || y < 0 || y > height) continue;
      x = half * 2 > width ? width / 2 : Math.min(Math.max(x, half), width - half);
      y = Math.min(Math.max(y, 10), height - 10);
      if (taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 17)) continue;
      taken.push({ x, y, half });
      pen.strokeStyle = paper;
      pen.lineWidth = 4;
      pen.strokeText(name, x, y);
      pen.fillStyle = ink;
      pen.fillText(name, x, y);
    }
  }

  function look(point) {
    if (point === at) return;
    at = point;
    const name = point && shownName(clusters.get(point.cluster)?.name ?? "in no cluster", 80);
    byId("map-message").textContent = point ? `${name}: ${point.snippet}` : "";
    canvas.style.cursor = point ? "pointer" : "";
    draw();
  }

  function nearest(x, y, within = Infinity) {
    let best = null;
    for (const point of points) {
      if (only !== null && point.cluster !== only) continue;
      const [px, py] = place(point);
      const far = Math.hypot(px - x, py - y);
      if (far < within) [best, within] = [point, far];
    }
    return best ?? (within === Infinity ? points[0] ?? null : null);
  }
  const under = (event) => nearest(event.offsetX, event.offsetY, NEAR_PX);

  // The nearest point within 45 degrees of a direction.
  function towards(dx, dy) {
    if (!at) return held ?? points[0];
    let best = at;
    let least = Infinity;
    for (const point of points) {
      const along = (point.x - at.x) * dx + (point.y - at.y) * dy;
      const aside = Math.abs((point.x - at.x) * dy - (point.y - at.y) * dx);
      if (along > 0 && aside <= along && along + aside < least) [best, least] = [point, along + aside];
    }
    return best;
  }

  function zoom(factor, x, y) {
    if (x === undefined) [x, y] = place(at ?? held ?? nearest(size().width / 2, size().height / 2) ?? { x: 0, y: 0 });
    const before = view.zoom;
    view.zoom = Math.min(MAX_ZOOM, Math.max(1, before * factor));
    view.x = x - ((x - view.x) * view.zoom) / before;
    view.y = y - ((y - view.y) * view.zoom) / before;
    pan(0, 0);
  }

  // The whole map stays larger than the frame.
  function pan(dx, dy) {
    const { width, height } = size();
    view.x = Math.min(0, Math.max(width * (1 - view.zoom), view.x + dx));
    view.y = Math.min(0, Math.max(height * (1 - view.zoom), view.y + dy));
    canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y"; // a finger on the whole map scrolls the page
    byId("zoom-out").disabled = byId("zoom-all").disabled = view.zoom === 1;
    byId("zoom-in").disabled = view.zoom === MAX_ZOOM;
    draw();
  }

  function show(point) {
    const [x, y] = place(point);
    const { width, height } = size();
    if (x < 10 || x > width - 10 || y < 10 || y > height - 10) pan(width / 2 - x, height / 2 - y);
  }

  function onKey(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && at) choose(at);
    else if (event.key === "Escape") look(null);
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") zoom(0);
    else if (steps[event.key]) {
      look(towards(...steps[event.key]));
      show(at);
    } else return;
    event.preventDefault();
  }

  listenToPointers(canvas, { zoom, pan, look: (event) => look(under(event)), leave: () => look(null), click: (event) => {
    look(under(event));
    if (at) choose(at);
  } });
  canvas.addEventListener("keydown", onKey);
  byId("zoom-in").addEventListener("click", () => zoom(1.6));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
  byId("zoom-all").addEventListener("click", () => zoom(0));
  dark.addEventListener("change", draw);
  new ResizeObserver(() => pan(0, 0)).observe(canvas);
  return {
    load,
    ring(ids) {
      ringed = new Set(ids);
      draw();
    },
    point(id) {
      held = known.get(id) ?? null;
      draw();
    },
  };
}

// One pointer pans, two zoom, and one that does not move clicks. A wheel zooms with Ctrl, or while the map has the focus.
function listenToPointers(canvas, act) {
  const down = new Map(); // id -> last place
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    if (!down.size) moved = false;
    down.set(event.pointerId, { x: event.offsetX, y: event.offsetY, from: [event.offsetX, event.offsetY] });
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = down.get(event.pointerId);
    if (!last) {
      if (event.pointerType === "mouse" || event.pointerType === "pen") act.look(event);
      return;
    }
    const [dx, dy] = [event.offsetX - last.x, event.offsetY - last.y];
    if (!moved && Math.hypot(event.offsetX - last.from[0], event.offsetY - last.from[1]) < MOVED_PX) return;
    if (!moved) canvas.setPointerCapture(event.pointerId);
    moved = true;
    const others = [...down].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    const between = (x, y) => Math.hypot(x - others[0].x, y - others[0].y);
    if (others.length === 1) act.zoom(between(event.offsetX, event.offsetY) / Math.max(1, between(last.x, last.y)), (event.offsetX + others[0].x) / 2, (event.offsetY + others[0].y) / 2);
    act.pan(others.length ? dx / 2 : dx, others.length ? dy / 2 : dy);
    Object.assign(last, { x: event.offsetX, y: event.offsetY });
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      const known = down.delete(event.pointerId);
      if (known && name === "pointerup" && !moved) act.click(event);
    });
  }
  canvas.addEventListener("pointerleave", (event) => { if (!down.size && event.pointerType === "mouse") act.leave(); });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
    event.preventDefault();
    act.zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 150), event.offsetX, event.offsetY);
  }, { passive: false });
}

// A button for each cluster, in its colour; one that is pressed shows its points alone.
function legend(content, colour, choose) {
  let pressed = null;
  const loose = content.points.some((point) => point.cluster < 0) ? [{ cluster: -1, name: "in no cluster", size: null }] : [];
  const buttons = [...content.clusters, ...loose].map(({ cluster, name, size }) => {
    const dot = element("i");
    dot.style.background = colour(cluster);
    const made = element("button", { type: "button", class: "quiet", "aria-pressed": "false" }, [dot, element("bdi", {}, [shownName(name, 60)]), size === null ? "" : element("span", { class: "hint" }, [` ${whole.format(size)}`])]);
    made.addEventListener("click", () => {
      pressed = pressed === made ? null : made;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === pressed));
      choose(pressed && cluster);
    });
    return made;
  });
  return buttons;
}
