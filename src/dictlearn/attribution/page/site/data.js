// The graph: columns of nodes and links, and for each node its links, the strongest first. A node and a
// link are numbers everywhere; a row is 0 for the tokens, layer + 1, and the last for the logits.
"use strict";

const FEATURE = 0, ERROR = 1, TOKEN = 2, LOGIT = 3;
const NONE = 0, RELIABLE = 1, UNRELIABLE = 2;

const data = { graph: null, chunks: new Map() };

const dictlearn = {
  graph(raw) {
    const { nodes, links, ...about } = raw;
    const n = nodes.name.length;
    const source = Int32Array.from(links.source), target = Int32Array.from(links.target);
    const weight = Float64Array.from(links.weight);
    const { pages = null, features = [], similar = [], chunk_rows = [], site = null } = raw;
    data.graph = {
      ...about, n, m: weight.length, source, target, weight, features, similar, chunk_rows, site, pages,
      rows: nodes.row.reduce((most, row) => Math.max(most, row), 0) + 1,
      name: nodes.name, row: Int32Array.from(nodes.row), position: Int32Array.from(nodes.position),
      type: Uint8Array.from(nodes.type), index: nodes.index, activation: nodes.activation,
      share: Float64Array.from(nodes.influence, (share) => share ?? NaN), // cumulative
      probability: Float64Array.from(nodes.probability), given: nodes.label,
      record: Int32Array.from(raw.records ?? { length: n }, raw.records ? undefined : () => -1),
      number: new Map(nodes.name.map((name, node) => [name, node])),
      into: linksBy(target, weight, n), from: linksBy(source, weight, n),
      named: new Map(), // labels that the reader gave, by node
    };
  },

  features(number, features) {
    data.chunks.set(number, new Map(features.map((feature) => [feature.row, feature])));
  },
};

// For each node its links at this end, the strongest first: [starts, links].
function linksBy(end, weight, n) {
  const starts = new Int32Array(n + 1);
  for (const node of end) starts[node + 1] += 1;
  for (let node = 0; node < n; node++) starts[node + 1] += starts[node];
  const order = Int32Array.from(weight, (_, link) => link);
  const size = weight.map(Math.abs);
  order.sort((a, b) => end[a] - end[b] || size[b] - size[a]);
  return { starts, order };
}

function linksOf({ starts, order }, node) {
  return order.subarray(starts[node], starts[node + 1]);
}

// The whole record of a node's feature, or null if the page has none.
async function loadFeature(node) {
  const { record, chunk_rows } = data.graph;
  if (record[node] < 0) return null;
  const chunk = chunkOf(record[node], chunk_rows);
  if (!data.chunks.has(chunk)) await load(numbered("features", chunk));
  return data.chunks.get(chunk)?.get(record[node]) ?? null;
}

function featureOf(node) {
  const feature = data.graph.features[data.graph.record[node]];
  if (!feature) return null;
  const [name, address, text, status, tokens] = feature;
  return { name, address, text, status, tokens };
}

// A feature's name as dictlearn prints it, or layer/index; other nodes say what they are.
function nameOf(node) {
  const { type, row, index } = data.graph;
  if (type[node] === FEATURE) return featureOf(node)?.name ?? `${row[node] - 1}/${index[node]}`;
  if (type[node] === ERROR) return `error ${row[node] - 1}`;
  return type[node] === TOKEN ? "token" : "output";
}

// What a node stands for, in words: the reader's own label, the description, the file's label, tokens.
function labelOf(node) {
  const { type, row, given, tokens, position, named } = data.graph;
  if (named.has(node)) return named.get(node);
  if (type[node] === TOKEN) return visible(tokens[position[node]]);
  if (type[node] === LOGIT) return visible(outputOf(node));
  if (type[node] === ERROR) return `error of layer ${row[node] - 1}`;
  const feature = featureOf(node);
  if (feature?.text) return prose(feature.text).map((part) => part.textContent ?? part).join("");
  return given[node] || feature?.tokens || nameOf(node);
}

// The token of a logit, out of its label: Output "tok" (p=0.123)
function outputOf(node) {
  const label = data.graph.given[node];
  return /^Output "([^]*)" \(p=[\d.e-]+\)$/.exec(label)?.[1] ?? (label || data.graph.name[node]);
}

function visible(text) {
  return text.replace(/[\n\r\t]|^ | $/g, (letter) => SIGNS[letter]);
}

function layerName(row) {
  const { rows } = data.graph;
  return row === 0 ? "tokens" : row === rows - 1 ? "output" : `layer ${row - 1}`;
}
