// Groups suggested by three likenesses of features: words of descriptions, cosine of decoders, and
// shared neighbours in the graph (the cosine of their signed links). Average-linkage clustering.
"use strict";

const SUGGESTED_OF = 60; // the most influential features, where few are pinned
const ALIKE = 0.45; // groups are joined down to this mean likeness
const COMMON = new Set("a an and are as at before after by for from in inside is it its of on or the that this to with token tokens word words".split(" "));

// [{name, nodes}] of at least two nodes each, of those that are pinned, or of the most influential ones.
function suggestions() {
  const { type } = data.graph;
  const pinned = state.pinned.filter((node) => type[node] === FEATURE);
  const nodes = pinned.length > 2 ? pinned : influential();
  const alike = nodes.map((a) => nodes.map((b) => likeness(a, b)));
  let clusters = nodes.map((_, i) => [i]);
  const between = (a, b) => a.reduce((sum, i) => sum + b.reduce((part, j) => part + alike[i][j], 0), 0) / (a.length * b.length);
  for (;;) {
    let best = ALIKE, pair = null;
    clusters.forEach((a, i) => clusters.slice(i + 1).forEach((b, j) => {
      const score = between(a, b);
      if (score > best) { best = score; pair = [i, i + 1 + j]; }
    }));
    if (!pair) break;
    const [i, j] = pair;
    clusters = [...clusters.filter((_, at) => at !== i && at !== j), [...clusters[i], ...clusters[j]]];
  }
  return clusters.filter((cluster) => cluster.length > 1).sort((a, b) => b.length - a.length)
    .map((cluster) => { const members = cluster.map((i) => nodes[i]); return { name: nameForGroup(members), nodes: members }; })
    .map((one, _, all) => ({ ...one, name: all.filter(({ name }) => name === one.name).length > 1 ? `${one.name}, ${layersOf(one.nodes)}` : one.name }));
}

function layersOf(nodes) {
  const rows = nodes.map((node) => data.graph.row[node] - 1);
  const [first, last] = [Math.min(...rows), Math.max(...rows)];
  return first === last ? `layer ${first}` : `layers ${first} to ${last}`;
}

function influential() {
  const { n, type } = data.graph;
  return Array.from({ length: n }, (_, node) => node)
    .filter((node) => type[node] === FEATURE && view.shown.nodes[node])
    .sort((a, b) => view.influence[b] - view.influence[a]).slice(0, SUGGESTED_OF);
}

// From 0 to 1. What isn't known of one of them doesn't count; the same feature elsewhere is itself.
function likeness(a, b) {
  if (a === b) return 1;
  const { record, row, index } = data.graph;
  if (row[a] === row[b] && index[a] === index[b]) return 1;
  const parts = [[2, likeWords(a, b)], [1, likeLinks(a, b)]];
  if (record[a] >= 0 && record[b] >= 0) parts.push([2, likeDecoders(record[a], record[b])]);
  const known = parts.filter(([, value]) => value !== null);
  const weights = known.reduce((sum, [weight]) => sum + weight, 0);
  return known.reduce((sum, [weight, value]) => sum + weight * value, 0) / (weights || 1);
}

// The words of its description, and each token that the description quotes.
function wordsOf(node) {
  const feature = featureOf(node);
  const text = data.graph.named.get(node) ?? (feature?.text || data.graph.given[node] || feature?.tokens || "");
  const [quoted, said] = [[], []];
  for (const part of prose(text)) (part.textContent === undefined ? said : quoted).push(part.textContent ?? part);
  const words = said.join(" ").toLowerCase().split(/[^\p{L}\p{N}_]+/u);
  return new Set([...quoted, ...words.filter((word) => word && !COMMON.has(word))]);
}

function likeWords(a, b) {
  const [one, two] = [wordsOf(a), wordsOf(b)];
  if (!one.size || !two.size) return null;
  const both = [...one].filter((word) => two.has(word)).length;
  return both / Math.sqrt(one.size * two.size);
}

// The store keeps each feature's nearest decoders; of others the cosine is not known, and small.
function likeDecoders(a, b) {
  likeDecoders.known ??= new Map(data.graph.similar.flatMap(([i, j, cosine]) => [[`${i} ${j}`, cosine], [`${j} ${i}`, cosine]]));
  return Math.max(0, likeDecoders.known.get(`${a} ${b}`) ?? 0);
}

function likeLinks(a, b) {
  const { source, target, weight, into, from } = data.graph;
  const profile = (node) => {
    const ends = new Map();
    for (const link of linksOf(into, node)) ends.set(`<${source[link]}`, weight[link]);
    for (const link of linksOf(from, node)) ends.set(`>${target[link]}`, weight[link]);
    return ends;
  };
  const [one, two] = [profile(a), profile(b)];
  const square = (ends) => [...ends.values()].reduce((sum, value) => sum + value * value, 0);
  const size = Math.sqrt(square(one) * square(two));
  if (!size) return null;
  let dot = 0;
  for (const [end, value] of one) dot += value * (two.get(end) ?? 0);
  return Math.max(0, dot / size);
}

// The words that most of its members share, else the label of the most influential.
function nameForGroup(nodes) {
  const counts = new Map();
  for (const node of nodes) for (const word of wordsOf(node)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const shared = [...counts].filter(([, count]) => count > 1 && count > nodes.length / 2).sort((a, b) => b[1] - a[1]).slice(0, 3);
  const name = shared.map(([word]) => visible(word)).join(" ");
  if (name) return /\p{L}/u.test(name) ? name : `token ${name}`;
  const best = nodes.reduce((a, b) => (view.influence[b] > view.influence[a] ? b : a));
  return labelOf(best).slice(0, 40);
}
