// What is on the screen follows `state`, and the address follows both.
"use strict";

const drawn = { waiting: new Set(), frame: null };

// Draws in the next frame: "graph", "hover", "subgraph".
function drawSoon(...what) {
  what.forEach((one) => drawn.waiting.add(one));
  drawn.frame ??= requestAnimationFrame(drawNow);
}

function drawNow() {
  drawn.frame = null;
  const waiting = [...drawn.waiting];
  drawn.waiting.clear();
  const paint = { graph: drawGraph, hover: drawHover, subgraph: drawSubgraph };
  byId("subgraph-canvas").style.height = `${heightFor(boxes(), byId("subgraph-canvas").clientWidth)}px`;
  for (const one of waiting) {
    const canvas = byId(`${one}-canvas`);
    if (canvas.clientWidth && canvas.clientHeight) painted(canvas, paint[one]);
  }
}

function drawAll() {
  drawSoon("graph", "hover", "subgraph");
}

// Changes `state`, and shows it.
function change(act) {
  act();
  history.replaceState(null, "", address());
  render();
}

function render() {
  prune();
  fillTools();
  showPanel();
  drawAll();
}

function click(node) {
  if (node === state.clicked && node !== null) return;
  state.clicked = node;
  opened.group = null;
  history.replaceState(null, "", address());
  showPanel();
  drawAll();
  if (node === null) return;
  byId("spoken").textContent = `${labelOf(node)}, ${whereOf(node)}`;
  if (!byId("view").clientWidth) say(byId("spoken").textContent); // a narrow screen shows it in another tab
}

function openGroup(one) {
  click(null);
  opened.group = one;
  showPanel();
  showTab("view");
}

function fillTools() {
  const { threshold, n, type } = data.graph;
  const { nodes } = view.shown;
  byId("node-share").max = threshold;
  byId("node-share").value = state.nodeShare;
  byId("link-share").value = state.linkShare;
  byId("node-shown").textContent = percent(state.nodeShare);
  byId("link-shown").textContent = percent(state.linkShare);
  byId("links").value = state.links;
  let features = 0, all = 0;
  for (let node = 0; node < n; node++) {
    if (type[node] !== FEATURE) continue;
    all += 1;
    features += nodes[node];
  }
  byId("count").dataset.tip = byId("count").textContent = `${whole(features)} of ${whole(all)} features · ${whole(view.count)} of ${whole(data.graph.m)} links`;
  const many = state.pinned.length, groups = state.groups.length;
  byId("pinned-count").textContent = many ? `${whole(many)} ${many === 1 ? "node" : "nodes"}${groups ? `, ${groups} ${groups === 1 ? "group" : "groups"}` : ""}` : "";
  document.body.dataset.pinned = many ? "some" : "none";
  byId("hint").hidden = many > 0;
  byId("unpin").hidden = byId("tidy").hidden = many === 0;
}

const opened = { node: undefined, group: null };

async function showPanel() {
  const node = state.clicked;
  opened.node = node;
  let content;
  try {
    const record = node === null ? null : await loadFeature(node);
    if (opened.node !== node) return; // another node was clicked meanwhile
    content = node !== null ? nodeView(node, record) : state.groups.includes(opened.group) ? groupView(opened.group) : overviewOf();
  } catch (error) {
    content = [el("p", { class: "warning" }, `${error.message}.`)];
  }
  const panel = byId("view");
  const same = panel.dataset.node === String(node ?? "");
  const top = panel.scrollTop;
  panel.replaceChildren(...content);
  panel.scrollTop = same ? top : 0;
  panel.dataset.node = node ?? "";
  document.title = node === null ? data.graph.title : `${labelOf(node)} · ${data.graph.title}`;
}

function act(what) {
  const node = state.clicked;
  if (what === "pin" && node !== null) change(() => pin([node], !isPinned(node)));
  else if (what === "group") groupDialog();
  else if (what === "rename") renameDialog();
  else if (what === "rename-group") nameDialog(opened.group);
  else if (what === "ungroup") change(() => ungroup([...opened.group.nodes]));
}

// Arrow keys: to the next node of the layer, or to the nearest of the next layer that has one.
function walk(dx, dy) {
  const { n, row, type } = data.graph;
  const from = state.clicked;
  if (from === null) { click(view.chips[0]?.node ?? null); return; }
  const here = spot(from);
  let best = null, least = Infinity;
  for (let node = 0; node < n; node++) {
    if (node === from || !(view.shown.nodes[node] || type[node] >= TOKEN)) continue;
    const at = spot(node);
    if (!at || !here) continue;
    const across = (at[0] - here[0]) * dx, up = (row[node] - row[from]) * -dy;
    if (dx ? row[node] !== row[from] || across <= 0 : up <= 0) continue;
    const cost = dx ? across + Math.abs(at[1] - here[1]) * 0.1 : up * 1e5 + Math.abs(at[0] - here[0]);
    if (cost < least) { best = node; least = cost; }
  }
  if (best !== null) click(best);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("dialog").open) return;
  const typing = event.target.closest("input, select");
  if (event.key === "Escape") leave(typing);
  else if (typing) return;
  else if (event.key in ARROWS && !event.target.closest("#view, button")) walk(...ARROWS[event.key]);
  else if (event.key in PRESSED) PRESSED[event.key]();
  else return;
  event.preventDefault();
}

const PRESSED = {
  p: () => act("pin"), g: () => act("group"), r: () => act("rename"), s: suggestDialog, "?": helpDialog,
  "/": () => { byId("query").focus(); byId("query").select(); },
  "+": () => zoomMiddle(1.5), "=": () => zoomMiddle(1.5), "-": () => zoomMiddle(1 / 1.5), 0: () => zoomMiddle(0),
};

function leave(typing) {
  if (view.found) { byId("query").value = ""; find(); }
  if (typing) typing.blur(); else click(null);
}

function zoomMiddle(by) {
  const { width, height } = view.places;
  zoomAt(width / 2, height / 2, view.zoom.k * by);
}

const FOUND_SHOWN = 12;

// Fades what the search does not find, and lists what it finds, the most influential first.
function find() {
  const asked = byId("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const { n, type } = data.graph;
  const matches = [];
  for (let node = 0; node < n && asked.length; node++) {
    if (!view.shown.nodes[node] && type[node] < TOKEN) continue;
    const text = `${labelOf(node)}\n${type[node] < TOKEN ? nameOf(node) : ""}\n${featureOf(node)?.tokens ?? ""}\n${data.graph.name[node]}`.toLowerCase();
    if (asked.every((word) => text.includes(word))) matches.push(node);
  }
  matches.sort((a, b) => view.influence[b] - view.influence[a]);
  view.found = asked.length ? new Set(matches) : null;
  byId("found").replaceChildren(...matches.slice(0, FOUND_SHOWN).map((node) => el("li", {},
    el("button", { type: "button", class: "node", "data-node": node }, glyph(node), el("span", { class: "label" }, labelNode(node)), el("span", { class: "at" }, placeOf(node))))),
    el("li", { class: "note" }, matches.length ? `${whole(matches.length)} found` : "Nothing found"));
  byId("found").hidden = !asked.length;
  drawSoon("graph");
}

function listen() {
  listenToGraph();
  listenToSubgraph();
  listenToSplit();
  addEventListener("keydown", onKey);
  addEventListener("pointerover", showTip);
  addEventListener("hashchange", () => { readAddress(); render(); });
  document.addEventListener("click", onClick);
  new ResizeObserver(drawAll).observe(byId("graph"));
  new ResizeObserver(drawAll).observe(byId("subgraph"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  byId("query").addEventListener("input", find);
  byId("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter") byId("found").querySelector("button")?.click();
    if (event.key === "ArrowDown") byId("found").querySelector("button")?.focus();
  });
  for (const [id, key] of [["node-share", "nodeShare"], ["link-share", "linkShare"]]) {
    byId(id).addEventListener("input", () => change(() => { state[key] = Number(byId(id).value); }));
  }
  byId("links").addEventListener("input", () => change(() => { state.links = byId("links").value; }));
  byId("view").addEventListener("scroll", hideTip, { passive: true });
}

function onClick(event) {
  const at = (selector) => event.target.closest(selector);
  const button = at("button");
  if (!at("#search")) byId("found").hidden = true;
  if (!at(".menu") || at("[data-export]")) document.querySelector(".menu").open = false;
  const node = at("[data-node]:not(#view)")?.dataset.node;
  if (node !== undefined) { click(Number(node)); byId("found").hidden = true; showTab("view"); }
  if (!button) return;
  const { action: asked, export: wanted, tab, zoom } = button.dataset;
  if (asked) act(asked);
  if (wanted) EXPORTS[wanted]();
  if (tab) showTab(tab);
  if (zoom) zoomMiddle(Number(zoom));
  if (button.id === "ask") helpDialog();
  if (button.id === "suggest") suggestDialog();
  if (button.id === "tidy") change(() => { state.places = new Map(); });
  if (button.id === "unpin") change(() => { pin([...state.pinned], false); state.places = new Map(); });
}

// Which part a narrow screen shows below the graph.
function showTab(tab) {
  document.body.dataset.tab = tab;
  for (const button of byId("tabs").children) button.setAttribute("aria-current", String(button.dataset.tab === tab));
  drawAll();
}

async function start() {
  try {
    await load("graph.js");
  } catch (error) {
    byId("view").replaceChildren(el("p", { class: "warning" }, `${error.message}: write the page again with dictlearn attribute.`));
    return;
  }
  byId("title").textContent = data.graph.prompt.trim() || data.graph.title;
  byId("hint").textContent = "Pin nodes (p, or shift-click) to build a small graph of what matters here.";
  if (data.graph.listed) byId("all").hidden = false;
  readAddress();
  listen();
  showTab("graph");
  render();
  await new Promise(requestAnimationFrame);
  document.documentElement.dataset.ready = "true";
}

start();
