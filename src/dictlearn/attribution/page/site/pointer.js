// The mouse and fingers on the two drawings.
"use strict";

const MOVED = 4; // px that make a press a drag
const CLOSEST = 12;

function listenToGraph() {
  const canvas = byId("graph-canvas");
  const pressed = new Map(); // by pointer: where it is
  let start = null, spread = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pressed.set(event.pointerId, [event.offsetX, event.offsetY]);
    start = { x: event.offsetX, y: event.offsetY, zoom: { ...view.zoom }, moved: false };
    spread = pressed.size === 2 ? between(pressed) : null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!pressed.has(event.pointerId)) { hover(nodeAt(event.offsetX, event.offsetY), event); return; }
    pressed.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (spread) {
      const now = between(pressed);
      zoomAt(now.x, now.y, start.zoom.k * (now.distance / spread.distance));
      start.moved = true;
      return;
    }
    const [dx, dy] = [event.offsetX - start.x, event.offsetY - start.y];
    if (!start.moved && Math.hypot(dx, dy) < MOVED) return;
    start.moved = true;
    view.zoom = bounded({ k: start.zoom.k, x: start.zoom.x + dx, y: start.zoom.y + dy });
    drawAll();
  });
  const lift = (event) => {
    pressed.delete(event.pointerId);
    spread = null;
    if (!start || start.moved || event.type === "pointercancel") return;
    const node = nodeAt(event.offsetX, event.offsetY);
    if (event.shiftKey && node !== null) change(() => pin([node], !isPinned(node)));
    else click(node);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoomAt(event.offsetX, event.offsetY, view.zoom.k * Math.exp(-event.deltaY / 150));
    else if (view.zoom.k > 1) { view.zoom = bounded({ ...view.zoom, x: view.zoom.x - event.deltaX, y: view.zoom.y - event.deltaY }); drawAll(); }
    else return;
    event.preventDefault();
  }, { passive: false });
}

function between(pressed) {
  const [[a, b], [c, d]] = [...pressed.values()];
  return { x: (a + c) / 2, y: (b + d) / 2, distance: Math.max(1, Math.hypot(a - c, b - d)) };
}

// Comes closer around a place; 0 shows the whole graph.
function zoomAt(x, y, wanted) {
  const k = Math.min(CLOSEST, Math.max(1, wanted));
  const { k: before, x: left, y: top } = view.zoom;
  view.zoom = bounded({ k, x: x - EDGE.left - ((x - EDGE.left - left) * k) / before, y: y - EDGE.top - ((y - EDGE.top - top) * k) / before });
  drawAll();
}

function bounded({ k, x, y }) {
  const { width, height, bottom } = view.places;
  const [across, down] = [width - EDGE.left - EDGE.right, height - EDGE.top - bottom];
  return { k, x: Math.min(0, Math.max(across * (1 - k), x)), y: Math.min(0, Math.max(down * (1 - k), y)) };
}

// The line between the two drawings can be dragged.
function listenToSplit() {
  const split = byId("split");
  split.addEventListener("pointerdown", (event) => split.setPointerCapture(event.pointerId));
  split.addEventListener("pointermove", (event) => {
    if (!split.hasPointerCapture(event.pointerId)) return;
    const { top, bottom } = byId("view").getBoundingClientRect();
    const below = Math.min(bottom - top - 160, Math.max(60, bottom - event.clientY));
    document.body.style.setProperty("--below", `${Math.round(below)}px`);
  });
}

function listenToSubgraph() {
  const canvas = byId("subgraph-canvas");
  const size = () => [canvas.clientWidth, canvas.clientHeight];
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    const box = boxAt(event.offsetX, event.offsetY, ...size());
    if (!box) return;
    canvas.setPointerCapture(event.pointerId);
    held = { box, x: event.offsetX, y: event.offsetY, at: boxSpot(box, ...size()), moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) { hoverBox(boxAt(event.offsetX, event.offsetY, ...size()), event); return; }
    const [dx, dy] = [event.offsetX - held.x, event.offsetY - held.y];
    if (!held.moved && Math.hypot(dx, dy) < MOVED) return;
    held.moved = true;
    const [width, height] = size();
    state.places.set(held.box.key, [(1000 * (held.at[0] + dx)) / width, (1000 * (held.at[1] + dy)) / height]);
    subgraph.over = boxAt(event.offsetX, event.offsetY, width, height, held.box.key)?.key ?? null;
    drawSoon("subgraph");
  });
  canvas.addEventListener("pointerup", () => {
    if (!held) return;
    const { box, moved } = held;
    const onto = subgraph.boxes.find(({ key }) => key === subgraph.over);
    held = null;
    subgraph.over = null;
    if (!moved) openBox(box);
    else change(() => { if (onto) join(box, onto); });
  });
  canvas.addEventListener("pointercancel", () => { held = null; subgraph.over = null; drawSoon("subgraph"); });
  canvas.addEventListener("pointerleave", () => { if (!held) hoverBox(null); });
}

function openBox({ key, nodes }) {
  if (key.startsWith("n")) click(nodes[0]); else openGroup(state.groups.find(({ id }) => key === `g${id}`));
}

function hoverBox(box, event) {
  const key = box?.key ?? null;
  byId("subgraph-canvas").style.cursor = box ? "grab" : "";
  if (key !== subgraph.hovered) { subgraph.hovered = key; drawSoon("subgraph"); }
  if (box) tipAt(event.clientX, event.clientY, box.nodes.map((node) => `${nameAt(node)}  ${labelOf(node)}`).join("\n")); else hideTip();
}

function hover(node, event) {
  byId("graph-canvas").style.cursor = node === null ? "" : "pointer";
  if (node !== view.hovered) { view.hovered = node; drawSoon("hover"); }
  if (node === null) hideTip(); else tipAt(event.clientX, event.clientY, said(node));
}

// What a tip says of a node: its label, where it is, its link to the clicked one.
function said(node) {
  const { source, weight } = data.graph;
  const facts = [labelOf(node), whereOf(node)];
  const link = state.clicked === null ? undefined : shownLinks(state.clicked).find((one) => source[one] === node || data.graph.target[one] === node);
  if (link !== undefined && node !== state.clicked) facts.push(`${signedShort(weight[link])} ${source[link] === node ? "to" : "from"} ${labelOf(state.clicked)}`);
  return facts.join("\n");
}

function tipAt(x, y, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(Math.max(8, x + 14), innerWidth - tip.offsetWidth - 8);
  const top = y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 12 : y + 18;
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}
