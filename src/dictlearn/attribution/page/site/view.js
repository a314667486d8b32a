// The graph: nodes by layer and token, the links of one node, or the strongest of all.
"use strict";

const BACKDROP = 450, DRAWN = 500; // links drawn of all, and of one node: the strongest
const NEAR = 12; // px from a node's middle that still point at it

const view = {
  shown: null, // what the thresholds leave: {nodes, links, score}
  places: null, chips: [], size: null, found: null, // nodes that a search found, or null
  hovered: null, zoom: { k: 1, x: 0, y: 0 }, strongest: [], influence: null, most: 1,
};

function prune() {
  view.shown = pruned(state.nodeShare, state.linkShare, isPinned);
  const { links, score } = view.shown;
  const kept = [];
  for (let link = 0; link < links.length; link++) if (links[link]) kept.push(link);
  view.count = kept.length;
  view.strongest = kept.sort((a, b) => score[b] - score[a]).slice(0, BACKDROP);
  view.influence ??= influence();
  view.most = view.influence.reduce((most, one, node) => (data.graph.type[node] <= ERROR ? Math.max(most, one) : most), 0) || 1;
  view.places = null;
}

function place(width, height) {
  if (view.places && view.places.width === width && view.places.height === height) return;
  view.places = placed(view.shown.nodes, width, height);
  view.chips = chipsOf(width);
}

// Where a node is on the screen.
function spot(node) {
  const { k, x, y } = view.zoom;
  const across = (place) => (place - EDGE.left) * k + x + EDGE.left;
  const { type } = data.graph;
  if (type[node] === LOGIT) {
    const chip = view.chips.find((one) => one.node === node);
    return chip ? [chip.x + chip.width / 2, 32] : null;
  }
  if (type[node] === TOKEN) return [across(view.places.x[node]), view.places.y[node]];
  return [across(view.places.x[node]), (view.places.y[node] - EDGE.top) * k + y + EDGE.top];
}

// Larger with its influence, and no larger than its cell allows.
function radius(node) {
  const size = 0.17 + 0.25 * Math.sqrt(view.influence[node] / view.most);
  return Math.min(2.2, Math.sqrt(view.zoom.k)) * Math.max(3.5, view.places.step[node]) * size;
}

// Links of a node that are shown, the strongest first, of the ends that the reader asked for.
function shownLinks(node, ends = state.links) {
  const { into, from, weight } = data.graph;
  const some = (which) => linksOf(which, node).filter((link) => view.shown.links[link]);
  const found = [...(ends === "output" ? [] : some(into)), ...(ends === "input" ? [] : some(from))];
  return found.sort((a, b) => Math.abs(weight[b]) - Math.abs(weight[a]));
}

function drawGraph(painter, width, height) {
  const tint = colours();
  place(width, height);
  const focus = state.clicked;
  const links = focus === null ? [] : shownLinks(focus).slice(0, DRAWN);
  const near = nearby(links, focus);
  drawGround(painter, tint, width, height);
  painter.within(EDGE.left - 6, 0, width - EDGE.left + 6, height, () => {
    if (focus === null) drawBackdrop(painter, tint);
    drawLinks(painter, tint, focus === null ? pinnedLinks() : links);
    painter.within(0, EDGE.top, width, height - view.places.bottom - EDGE.top, () => drawNodes(painter, tint, near));
    drawTokens(painter, tint, near, height);
  });
  drawChips(painter, tint, near);
}

// By node, the weight of its link to the clicked one as a part of the largest; null without one.
function nearby(links, focus) {
  if (focus === null) return null;
  const { source, target, weight } = data.graph;
  const most = links.length ? Math.abs(weight[links[0]]) : 1;
  return new Map([[focus, 0], ...links.map((link) => [source[link] === focus ? target[link] : source[link], weight[link] / (most || 1)])]);
}

function pinnedLinks() {
  const inner = state.pinned.flatMap((node) => [...linksOf(data.graph.into, node)])
    .filter((link) => view.shown.links[link] && isPinned(data.graph.source[link]));
  return inner.sort((a, b) => Math.abs(data.graph.weight[b]) - Math.abs(data.graph.weight[a]));
}

function drawGround(painter, tint, width, height) {
  const { bands, columns, bottom } = view.places;
  const { rows } = data.graph;
  const { k, x, y } = view.zoom;
  const foot = height - bottom;
  painter.text("output", EDGE.left - 12, 36, { size: 11, anchor: "end", fill: tint.muted });
  painter.text("tokens", EDGE.left - 12, foot + 20, { size: 11, anchor: "end", fill: tint.muted });
  painter.within(0, EDGE.top, width, foot - EDGE.top, () => {
    const skip = Math.ceil(13 / Math.max(1, (bands[1]?.height ?? 13) * k));
    for (let row = 1; row < rows - 1; row++) {
      const { top, height: high } = bands[row];
      const [from, size] = [(top - EDGE.top) * k + y + EDGE.top, high * k];
      if (row % 2) painter.box(EDGE.left - 4, from, width - EDGE.left - EDGE.right + 8, size, 4, { fill: tint.wash });
      if ((row - 1) % skip === 0) painter.text(String(row - 1), EDGE.left - 12, from + size / 2 + 4, { size: 11, anchor: "end", fill: tint.muted });
    }
    for (const column of columns.slice(1).filter(({ width }) => width * k > 6)) {
      const at = (column.left - EDGE.left) * k + x + EDGE.left;
      if (at > EDGE.left) painter.line(at, EDGE.top, at, foot, { stroke: tint.rule, opacity: 0.45 });
    }
  });
}

function drawBackdrop(painter, tint) {
  const { source, target, weight } = data.graph;
  const { score } = view.shown;
  const most = view.strongest.length ? score[view.strongest[0]] : 1;
  const calm = state.pinned.length ? 0.4 : 1;
  for (const link of view.strongest.toReversed()) {
    const [from, to] = [spot(source[link]), spot(target[link])];
    if (!from || !to) continue;
    const part = score[link] / most;
    painter.curve(from[0], from[1], to[0], to[1], {
      stroke: weight[link] > 0 ? tint.first : tint.second, width: 0.6 + 3 * part ** 0.7, opacity: calm * (0.06 + 0.4 * part ** 0.6),
    });
  }
}

function drawLinks(painter, tint, links) {
  const { source, target, weight } = data.graph;
  const most = links.length ? Math.abs(weight[links[0]]) || 1 : 1;
  for (const link of links.toReversed()) {
    const [from, to] = [spot(source[link]), spot(target[link])];
    if (!from || !to) continue;
    const part = Math.abs(weight[link]) / most;
    painter.curve(from[0], from[1], to[0], to[1], {
      stroke: weight[link] > 0 ? tint.first : tint.second, width: 0.7 + 4.3 * part ** 0.8, opacity: 0.12 + 0.78 * part ** 0.6,
    });
  }
}

function drawNodes(painter, tint, near) {
  const { n, type } = data.graph;
  for (let node = 0; node < n; node++) {
    if (!view.shown.nodes[node] || type[node] >= TOKEN) continue;
    const [x, y] = spot(node);
    const part = near?.get(node);
    const lit = !near || part !== undefined;
    const faded = (view.found && !view.found.has(node)) || !lit;
    const fill = !lit || !part ? tint.muted : part > 0 ? tint.first : tint.second;
    const r = radius(node) + (part ? 1.5 * Math.abs(part) : 0);
    const style = type[node] === ERROR
      ? { fill: tint.paper, stroke: fill, width: 1.2, opacity: faded ? 0.25 : 0.9 }
      : { fill, opacity: faded ? 0.2 : part ? 1 : 0.8 };
    if (type[node] === ERROR) painter.shape(diamond(x, y, r * 0.95), style);
    else painter.circle(x, y, r, style);
    if (isPinned(node)) painter.circle(x, y, r + 2.5, { stroke: tint.fourth, width: 2 });
    if (node === state.clicked) painter.circle(x, y, r + 3, { stroke: tint.ink, width: 2 });
  }
}

const diamond = (x, y, r) => [[x, y - r * 1.25], [x + r * 1.25, y], [x, y + r * 1.25], [x - r * 1.25, y]];

function drawTokens(painter, tint, near, height) {
  const { columns, bottom, upright } = view.places;
  const { k, x } = view.zoom;
  const nodes = new Map();
  for (let node = 0; node < data.graph.n; node++) {
    if (data.graph.type[node] === TOKEN) nodes.set(data.graph.position[node], node);
  }
  const top = height - bottom + 4;
  columns.forEach((column, position) => {
    const node = nodes.get(position) ?? null;
    const left = (column.left - EDGE.left) * k + x + EDGE.left, wide = column.width * k;
    const style = chipStyle(tint, node, near);
    const inset = wide > 8 ? 1.5 : 0;
    if (wide < 5 && style.box.stroke === tint.rule) style.box.stroke = null; // frames would be all that is seen
    painter.box(left + inset, top, Math.max(1, wide - 2 * inset), upright ? bottom - 8 : 25, 4, style.box);
    if (upright ? wide < 11 : wide < 14) return;
    if (!upright) painter.text(fitted(column.label, wide - 8, TOKEN_TEXT), left + wide / 2, top + 17, { ...TOKEN_TEXT, anchor: "middle", fill: style.ink });
    else painter.text(fitted(column.label, bottom - 18, { ...TOKEN_TEXT, size: 11 }), left + wide / 2 + 4, top + 5, { ...TOKEN_TEXT, size: 11, anchor: "end", angle: -90, fill: style.ink });
  });
}

function drawChips(painter, tint, near) {
  for (const { node, x, width, text, chance } of view.chips) {
    const style = chipStyle(tint, node, near);
    painter.box(x, 16, width, 25, 5, style.box);
    painter.text(text, x + 8, 33, { ...TOKEN_TEXT, weight: 600, fill: style.ink });
    painter.text(chance, x + width - 8, 33, { size: 11, anchor: "end", fill: style.faint });
  }
}

// Tokens and outputs: filled by their link to the clicked node, framed where they are pinned or clicked.
function chipStyle(tint, node, near) {
  const part = node === null ? undefined : near?.get(node);
  const faded = node === null || (near && part === undefined) || (view.found && !view.found.has(node));
  const frame = node !== null && node === state.clicked ? tint.ink : node !== null && isPinned(node) ? tint.fourth : tint.rule;
  const strong = part && Math.abs(part) > 0.5;
  const fill = part ? mixed(part > 0 ? tint.first : tint.second, tint.paper, 0.15 + 0.75 * Math.abs(part)) : tint.paper;
  return {
    box: { fill, stroke: frame, width: frame === tint.rule ? 1 : 2 },
    ink: faded ? mixed(tint.muted, tint.paper, 0.55) : strong ? tint.paper : tint.ink, faint: strong ? tint.paper : tint.muted,
  };
}

// `part` of a colour over another, both #rrggbb.
function mixed(colour, under, part) {
  const channel = (text, i) => parseInt(text.slice(2 * i + 1, 2 * i + 3), 16);
  return `#${[0, 1, 2].map((i) => Math.round(part * channel(colour, i) + (1 - part) * channel(under, i)).toString(16).padStart(2, "0")).join("")}`;
}

// Above it, on a canvas of its own: what is pointed at.
function drawHover(painter) {
  const node = view.hovered;
  const at = node === null || !view.places ? null : spot(node);
  if (!at) return;
  const tint = colours();
  if (state.clicked === null) drawLinks(painter, tint, shownLinks(node).slice(0, DRAWN));
  if (data.graph.type[node] < TOKEN) painter.circle(at[0], at[1], radius(node) + 3.5, { stroke: tint.ink, width: 1.5 });
}

// The node at a place on the screen, or null.
function nodeAt(x, y) {
  const { height, bottom, columns } = view.places;
  const { n, type, position } = data.graph;
  if (y < EDGE.top - 2) return view.chips.find((chip) => x >= chip.x && x <= chip.x + chip.width && y > 12)?.node ?? null;
  if (y > height - bottom) {
    const { k, x: shift } = view.zoom;
    const within = ({ left, width }) => { const from = (left - EDGE.left) * k + shift + EDGE.left; return x >= from && x < from + width * k; };
    const column = columns.findIndex(within);
    for (let node = 0; node < n; node++) if (type[node] === TOKEN && position[node] === column) return node;
    return null;
  }
  let best = null, least = NEAR;
  for (let node = 0; node < n; node++) {
    if (!view.shown.nodes[node] || type[node] >= TOKEN) continue;
    const [a, b] = spot(node);
    const distance = Math.hypot(a - x, b - y);
    if (distance < least) { best = node; least = distance; }
  }
  return best;
}
