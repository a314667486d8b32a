// Groups suggested by three likenesses of features: words of descriptions, cosine of decoders, and
// shared neighbours in the graph (the cosine of their signed links). Average-linkage clustering.
"use strict";

const SUGGESTED_OF = 60; // the most influential features, where few are pinned
const ALIKE = 0.45; // groups are joined down to this mean likeness
const COMMON = new Set("a an and any are as at before after by case for from in inside is it its of on or right the that this to where with without token tokens word words".split(" "));

// [{name, nodes}] of at least two nodes each, of those that are pinned, or of the most influential ones.
function suggestions() {
  const { type } = data.graph;
  const pinned = state.pinned.filter((node) => type[node] === FEATURE);
  const facts = (pinned.length > 2 ? pinned : influential()).map(factsOf);
  const groups = clustered(facts.map((a) => facts.map((b) => likeness(a, b))))
    .map((members) => members.map((i) => facts[i].node))
    .map((nodes) => ({ name: nameForGroup(nodes), nodes }));
  const twice = (one) => groups.filter(({ name }) => name === one.name).length > 1;
  return groups.map((one) => ({ ...one, name: twice(one) ? `${one.name}, ${layersOf(one.nodes)}` : one.name }));
}

// Clusters of at least two, the largest first: the two most alike are joined, by the mean likeness of
// their members, as long as any are.
function clustered(alike) {
  const sums = alike.map((row) => [...row]); // of the likenesses between two clusters' members
  const clusters = alike.map((_, i) => [i]);
  for (;;) {
    let best = ALIKE, pair = null;
    for (let i = 0; i < clusters.length; i++) {
      for (let j = i + 1; j < clusters.length && clusters[i].length; j++) {
        const mean = sums[i][j] / (clusters[i].length * clusters[j].length); // NaN of an emptied one
        if (mean > best) { best = mean; pair = [i, j]; }
      }
    }
    if (!pair) break;
    const [i, j] = pair;
    clusters[i].push(...clusters[j].splice(0));
    sums[j].forEach((sum, k) => { sums[i][k] += sum; sums[k][i] = sums[i][k]; });
    for (const row of sums) row[j] = 0;
  }
  return clusters.filter((cluster) => cluster.length > 1).sort((a, b) => b.length - a.length);
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

// What a node is compared by: its words, and the weights of its links by their other ends.
function factsOf(node) {
  const { source, target, weight, into, from } = data.graph;
  const links = new Map();
  for (const link of linksOf(into, node)) links.set(source[link], weight[link]);
  for (const link of linksOf(from, node)) links.set(target[link], weight[link]);
  const size = Math.sqrt([...links.values()].reduce((sum, value) => sum + value * value, 0));
  return { node, words: wordsOf(node), links, size };
}

// From 0 to 1. What isn't known of one of them doesn't count; the same feature elsewhere is itself.
function likeness(a, b) {
  const { record, row, index } = data.graph;
  const [one, two] = [a.node, b.node];
  if (row[one] === row[two] && index[one] === index[two]) return 1;
  const parts = [[2, likeWords(a.words, b.words)], [1, likeLinks(a, b)]];
  if (record[one] >= 0 && record[two] >= 0) parts.push([2, likeDecoders(record[one], record[two])]);
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

function likeWords(one, two) {
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
  if (!a.size || !b.size) return null;
  let dot = 0;
  for (const [end, value] of a.links) dot += value * (b.links.get(end) ?? 0);
  return Math.max(0, dot / (a.size * b.size));
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
