// The pinned nodes as boxes, by layer and token, with the links among them. A group is one box; its
// links are the sums of its members'. A bar at a box's foot says where its inputs come from.
"use strict";

const BOX = { width: 150, height: 52, text: { size: 12 }, gap: 12, space: 34, margin: 14 };
const LABELLED = 40; // links: of more, none shows its weight

const subgraph = { boxes: [], placed: new Map(), hovered: null, dragged: null, over: null };

// {key, nodes, name, label, row, position} of each box.
function boxes() {
  const { row, position } = data.graph;
  const mean = (values, nodes) => nodes.reduce((sum, node) => sum + values[node], 0) / nodes.length;
  const box = (key, nodes, name, label) => ({ key, nodes, name, label, row: mean(row, nodes), position: mean(position, nodes) });
  const single = state.pinned.filter((node) => !groupOf(node)).map((node) => box(`n${node}`, [node], nameAt(node), labelOf(node)));
  return [...single, ...state.groups.map(({ id, name, nodes }) => box(`g${id}`, nodes, `${nodes.length} ${nodes.length === 1 ? "node" : "nodes"}`, name))];
}

function nameAt(node) {
  const { type, tokens, position } = data.graph;
  if (type[node] === LOGIT) return percent(data.graph.probability[node]);
  return type[node] === TOKEN ? `token ${position[node]}` : `${nameOf(node)} · ${visible(tokens[position[node]])}`;
}

// Links between boxes: {from, to, weight}, the strongest first; a link within a group is left out.
function boxLinks(all) {
  const { into, source, weight } = data.graph;
  const of = new Map(all.flatMap((box, i) => box.nodes.map((node) => [node, i])));
  const sums = new Map();
  for (const [node, to] of of) {
    for (const link of linksOf(into, node)) {
      const from = of.get(source[link]);
      if (from === undefined || from === to || !view.shown.links[link]) continue;
      sums.set(`${from} ${to}`, (sums.get(`${from} ${to}`) ?? 0) + weight[link]);
    }
  }
  const found = [...sums].map(([key, sum]) => { const [from, to] = key.split(" ").map(Number); return { from, to, weight: sum }; });
  return found.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}

// Boxes in lines by layer, the highest first, each from left to right by token.
function boxLines(all, width) {
  const levels = [...new Set(all.map((box) => Math.round(box.row)))].sort((a, b) => b - a);
  const across = Math.max(1, Math.floor((width - 2 * BOX.margin + BOX.gap) / (BOX.width + BOX.gap)));
  return levels.flatMap((level) => {
    const here = all.filter((box) => Math.round(box.row) === level).sort((a, b) => a.position - b.position);
    return Array.from({ length: Math.ceil(here.length / across) }, (_, i) => here.slice(i * across, (i + 1) * across));
  });
}

// The height that all lines need.
function heightFor(all, width) {
  return 2 * BOX.margin + boxLines(all, width).length * (BOX.height + BOX.space) - BOX.space;
}

// Places lines from top to bottom and each line's boxes evenly: in the order of their tokens, and of
// one token, below the boxes that they lead to.
function placeBoxes(all, links, width, height) {
  subgraph.placed = new Map();
  const lines = boxLines(all, width);
  const step = (height - 2 * BOX.margin - BOX.height) / Math.max(1, lines.length - 1);
  const leadsTo = (box) => {
    let sum = 0, weights = 0;
    for (const { from, to, weight } of links) {
      if (all[from] !== box || !subgraph.placed.has(all[to].key)) continue;
      sum += Math.abs(weight) * subgraph.placed.get(all[to].key)[0];
      weights += Math.abs(weight);
    }
    return weights ? sum / weights : 500;
  };
  lines.forEach((line, i) => {
    const y = lines.length === 1 ? height / 2 : BOX.margin + BOX.height / 2 + i * step;
    const placed = line.map((box) => ({ box, below: leadsTo(box) })).sort((a, b) => a.box.position - b.box.position || a.below - b.below);
    placed.forEach(({ box }, j) => subgraph.placed.set(box.key, [(1000 * (j + 0.5)) / line.length, (1000 * y) / height]));
  });
}

function boxSpot(box, width, height) {
  const [x, y] = state.places.get(box.key) ?? subgraph.placed.get(box.key);
  return [(x * width) / 1000, (y * height) / 1000];
}

function drawSubgraph(painter, width, height) {
  const all = boxes();
  const tint = colours();
  subgraph.boxes = all;
  const links = boxLinks(all);
  placeBoxes(all, links, width, height);
  const spots = all.map((box) => boxSpot(box, width, height));
  const most = links.length ? Math.abs(links[0].weight) || 1 : 1;
  const touched = subgraph.hovered ?? all.find(({ nodes }) => nodes.includes(state.clicked))?.key ?? null;
  for (const { from, to, weight } of links.toReversed()) {
    const part = Math.abs(weight) / most;
    const calm = touched === null || all[from].key === touched || all[to].key === touched ? 1 : 0.25;
    const [a, b] = ends(spots[from], spots[to]);
    painter.curve(...a, ...b, { stroke: weight > 0 ? tint.first : tint.second, width: 0.7 + 5 * part ** 0.8, opacity: calm * (0.15 + 0.7 * part ** 0.6) });
    arrow(painter, a, b, { fill: weight > 0 ? tint.first : tint.second, opacity: calm * (0.3 + 0.6 * part) }, 3.5 + 3 * part);
  }
  if (links.length <= LABELLED) links.filter(({ weight }) => Math.abs(weight) > 0.15 * most).forEach((link) => drawWeight(painter, tint, link, spots));
  all.forEach((box, i) => drawBox(painter, tint, box, spots[i], touched));
}

// From the upper edge of one box to the lower edge of another; a link to a lower place leaves from below.
function ends([x1, y1], [x2, y2]) {
  const half = BOX.height / 2;
  if (Math.abs(y1 - y2) < BOX.height) {
    const side = (BOX.width / 2) * Math.sign(x2 - x1);
    return [[x1 + side, y1], [x2 - side, y2]];
  }
  return y1 > y2 ? [[x1, y1 - half], [x2, y2 + half + 3]] : [[x1, y1 + half], [x2, y2 - half - 3]];
}

function arrow(painter, [, from], [x, y], style, size) {
  const up = from > y ? 1 : -1;
  painter.shape([[x, y - 3 * up], [x - size, y + size * 1.5 * up], [x + size, y + size * 1.5 * up]], style);
}

function drawWeight(painter, tint, { from, to, weight }, spots) {
  const [a, b] = ends(spots[from], spots[to]);
  const [x, y] = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  const text = signedShort(weight);
  const wide = widthOf(text, { size: 10 }) + 6;
  painter.box(x - wide / 2, y - 8, wide, 14, 4, { fill: tint.paper, opacity: 0.85 });
  painter.text(text, x, y + 3, { size: 10, anchor: "middle", fill: tint.muted });
}

function drawBox(painter, tint, { key, nodes, name, label }, [x, y], touched) {
  const [left, top] = [x - BOX.width / 2, y - BOX.height / 2];
  const grouped = key.startsWith("g");
  const hot = subgraph.over === key;
  const frame = hot || nodes.includes(state.clicked) ? tint.ink : grouped ? tint.fourth : tint.rule;
  if (grouped) painter.box(left + 4, top - 4, BOX.width, BOX.height, 7, { fill: tint.wash, stroke: tint.fourth, width: 1 });
  painter.box(left, top, BOX.width, BOX.height, 7, { fill: hot ? tint.wash : tint.paper, stroke: frame, width: frame === tint.rule ? 1 : 1.8 });
  const style = { ...BOX.text, weight: grouped ? 600 : 400, fill: tint.ink };
  const text = lines(label, BOX.width - 16, 2, style);
  text.forEach((line, i) => painter.text(line, left + 8, top + 16 + 14 * i, style));
  painter.text(fitted(name, BOX.width - 16, { size: 10 }), left + 8, top + (text.length > 1 ? 43 : 32), { size: 10, fill: tint.muted });
  drawInputs(painter, tint, nodes, left, top + BOX.height - 3);
  if (touched === key && !hot) painter.box(left - 2, top - 2, BOX.width + 4, BOX.height + 4, 9, { stroke: tint.ink, width: 1, opacity: 0.35 });
}

// What share of its inputs is pinned, and what is error; the rest comes from nodes that aren't here.
function drawInputs(painter, tint, nodes, left, top) {
  const inner = nodes.filter((node) => linksOf(data.graph.into, node).length);
  if (!inner.length) return;
  const mean = (is) => inner.reduce((sum, node) => sum + inputShare(node, is), 0) / inner.length;
  const wide = BOX.width - 14;
  const known = mean(isPinned) * wide, lost = mean((node) => data.graph.type[node] === ERROR && !isPinned(node)) * wide;
  painter.box(left + 7, top - 1, wide, 2.5, 1, { fill: tint.rule });
  if (known > 0.5) painter.box(left + 7, top - 1, known, 2.5, 1, { fill: tint.third });
  if (lost > 0.5) painter.box(left + 7 + wide - lost, top - 1, lost, 2.5, 1, { fill: tint.second });
}

function boxAt(x, y, width, height, but = null) {
  return subgraph.boxes.toReversed().find((box) => {
    const [a, b] = boxSpot(box, width, height);
    return box.key !== but && Math.abs(a - x) <= BOX.width / 2 && Math.abs(b - y) <= BOX.height / 2;
  }) ?? null;
}

// One box was dropped on another: they become a group, or join the one that is there.
function join(moved, onto) {
  const nodes = [...onto.nodes, ...moved.nodes];
  const named = [onto, moved].find(({ key }) => key.startsWith("g"));
  const made = group(nodes, named ? named.label : nameForGroup(nodes));
  state.places.set(`g${made.id}`, state.places.get(onto.key) ?? subgraph.placed.get(onto.key));
  state.places.delete(moved.key);
}
