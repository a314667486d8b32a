// Places: a column for each token and a row for each layer. The nodes of one token and layer fill a
// grid; columns and rows are as wide and high as the fullest of their cells needs.
"use strict";

const EDGE = { left: 58, right: 16, top: 44, gap: 14 }; // px around the graph
const TOKEN_TEXT = { size: 12, mono: true };
const WIDEST = 17, USUAL = 9, PAD = 3; // px between neighbours in a cell: at most, and where rows are as high as they ask
const MOST_LINES = 12; // of nodes, for which a row asks
const LONGEST = 84; // px of a token's label
const LEAST = 34, UPRIGHT = 12; // px of a column, before the rest is shared out
const CELL = 15, MOST_ACROSS = 12; // px that a column asks for each node of its fullest cell, up to so many

// Places of visible nodes in a box: {x, y, step, columns: [{left, width, middle, label}], bands, bottom}.
function placed(visible, width, height) {
  const { n, row, position, type, tokens, rows } = data.graph;
  const cells = new Map(); // position * rows + row -> its nodes
  const widest = new Int32Array(tokens.length); // the fullest cell of each column
  for (let node = 0; node < n; node++) {
    if (!visible[node] || type[node] >= TOKEN) continue;
    const key = position[node] * rows + row[node];
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
    widest[position[node]] = Math.max(widest[position[node]], cells.get(key).length);
  }
  const inner = Math.max(60, width - EDGE.left - EDGE.right);
  const labels = tokens.map(shownToken);
  const wanted = labels.map((label) => Math.min(LONGEST, widthOf(label, TOKEN_TEXT) + 12));
  const upright = wanted.reduce((sum, width) => sum + Math.min(width, LEAST), 0) > inner;
  const bottom = upright ? 78 : 36;
  const columns = upright ? columnsOf(widest, wanted.map(() => UPRIGHT), UPRIGHT, inner) : columnsOf(widest, wanted, LEAST, inner);
  const space = Math.max(60, height - EDGE.top - bottom - 2 * EDGE.gap);
  const bands = bandsOf(cells, columns, rows, space);
  const x = new Float64Array(n), y = new Float64Array(n), step = new Float64Array(n);
  for (const [key, nodes] of cells) fillCell(nodes, columns[Math.floor(key / rows)], bands[key % rows], { x, y, step });
  for (let node = 0; node < n; node++) {
    if (type[node] === TOKEN) { x[node] = columns[position[node]].middle; y[node] = height - bottom + 4; }
  }
  columns.forEach((column, i) => { column.label = labels[i]; });
  return { x, y, step, columns, bands, bottom, upright, width, height };
}

function shownToken(text) {
  return visible(text) || "∅";
}

// Each column has `least` px, less where there is no room; the rest goes to long labels and full cells.
function columnsOf(widest, wanted, least, inner) {
  const narrow = wanted.map((width) => Math.min(width, least));
  const sum = narrow.reduce((a, b) => a + b, 0);
  const scale = Math.min(1, inner / sum);
  const asks = wanted.map((width, i) => width - narrow[i] + CELL * Math.min(widest[i], MOST_ACROSS));
  const asked = asks.reduce((a, b) => a + b, 0) || 1;
  const spare = Math.max(0, inner - sum * scale);
  const grown = Math.min(1, spare / asked); // what is left after all have what they ask for is shared
  const even = (spare - grown * asked) / wanted.length;
  let left = EDGE.left;
  return narrow.map((one, i) => {
    const width = one * scale + grown * asks[i] + even;
    const column = { left, width, middle: left + width / 2 };
    left += width;
    return column;
  });
}

// Rows from the bottom up: {top, height, middle}, as high as their fullest cells need.
function bandsOf(cells, columns, rows, space) {
  const lines = new Float64Array(rows).fill(1);
  for (const [key, nodes] of cells) {
    const across = Math.max(1, Math.floor((columns[Math.floor(key / rows)].width - PAD) / USUAL));
    lines[key % rows] = Math.max(lines[key % rows], Math.ceil(nodes.length / across));
  }
  const asks = Array.from(lines).slice(1, -1).map((count) => Math.min(count, MOST_LINES) + 1);
  const asked = asks.reduce((sum, count) => sum + count, 0) || 1;
  const bands = [];
  let foot = EDGE.top + EDGE.gap + space;
  asks.forEach((ask, i) => {
    const height = (ask / asked) * space;
    bands[i + 1] = { top: foot - height, height, middle: foot - height / 2 };
    foot -= height;
  });
  return bands;
}

// Puts a cell's nodes on a grid, as far apart as they fit; `step` is that distance.
function fillCell(nodes, column, { height, middle }, { x, y, step }) {
  const fits = (size) => Math.ceil(nodes.length / Math.max(1, Math.floor((column.width - PAD) / size))) * size <= height - PAD;
  let size = Math.min(WIDEST, Math.max(USUAL, column.width));
  while (size > 1.5 && !fits(size)) size *= 0.93;
  const across = Math.max(1, Math.min(nodes.length, Math.floor((column.width - PAD) / size)));
  const down = Math.ceil(nodes.length / across);
  nodes.forEach((node, i) => {
    const line = Math.floor(i / across);
    const here = line === down - 1 ? nodes.length - across * line : across;
    x[node] = column.middle + ((i % across) - (here - 1) / 2) * size;
    y[node] = middle + (line - (down - 1) / 2) * size;
    step[node] = size;
  });
}

// Outputs as chips along the top, the likeliest at the right: {node, x, width, text}.
function chipsOf(width) {
  const { n, type, probability } = data.graph;
  const outputs = Array.from({ length: n }, (_, node) => node).filter((node) => type[node] === LOGIT)
    .sort((a, b) => probability[b] - probability[a]);
  const chips = [];
  let right = width - EDGE.right;
  for (const node of outputs) {
    const text = fitted(shownToken(outputOf(node)), 90, { ...TOKEN_TEXT, weight: 600 });
    const chance = percent(probability[node]);
    const wide = widthOf(text, { ...TOKEN_TEXT, weight: 600 }) + widthOf(chance, { size: 11 }) + 24;
    if (right - wide < EDGE.left) break;
    chips.push({ node, x: right - wide, width: wide, text, chance });
    right -= wide + 6;
  }
  return chips;
}

function percent(share) {
  return share >= 0.995 ? "100%" : share >= 0.0995 ? `${Math.round(100 * share)}%` : `${(100 * share).toFixed(1)}%`;
}
