// How much of the outputs' probability arrives at each node, as circuit-tracer counts it: a node hands
// what arrives at it to its sources, in proportion to the absolute weights of its links.
//
// Links lead to higher rows, so one pass from the top row down gives what a power iteration tends to.
"use strict";

const order = { down: null }; // nodes from the top row down

// Influence of each node. `keeps(node)` nodes hand on, over links that `has(link)`.
function influence(has = () => true, keeps = () => true) {
  const { n, row, type, probability, into, source, weight } = data.graph;
  order.down ??= Int32Array.from({ length: n }, (_, node) => node).sort((a, b) => row[b] - row[a]);
  const arrived = new Float64Array(n);
  for (const node of order.down) {
    if (type[node] === LOGIT) arrived[node] += probability[node];
    if (arrived[node] === 0 || !keeps(node)) continue;
    const links = linksOf(into, node);
    let total = 0;
    for (const link of links) if (has(link)) total += Math.abs(weight[link]);
    if (total === 0) continue;
    for (const link of links) {
      if (has(link)) arrived[source[link]] += (arrived[node] * Math.abs(weight[link])) / total;
    }
  }
  return arrived;
}

// The smallest score that must be kept, with all larger ones, for a share of their sum.
function cutoff(scores, share) {
  const falling = Float64Array.from(scores).sort().reverse();
  const total = falling.reduce((sum, score) => sum + score, 0);
  let sum = 0;
  for (const score of falling) {
    sum += score;
    if (sum >= share * total) return score;
  }
  return falling.at(-1) ?? 0;
}

// What stays at these thresholds: nodes first, then of the links among them those that carry the
// share; then whatever leads nowhere goes. `pinned(node)` nodes stay. {nodes, links: Uint8Array, score}.
function pruned(nodeShare, linkShare, pinned) {
  const { n, m, type, share, threshold, source, target, weight, into } = data.graph;
  const most = nodeShare < threshold ? nodeShare : Infinity; // the file's last node crosses its threshold
  const nodes = new Uint8Array(n), links = new Uint8Array(m), score = new Float64Array(m);
  for (let node = 0; node < n; node++) {
    nodes[node] = Number(type[node] > ERROR || !(share[node] > most) || pinned(node));
  }
  const among = (link) => nodes[source[link]] && nodes[target[link]];
  const arrived = influence(among);
  for (let node = 0; node < n; node++) {
    const inner = linksOf(into, node).filter(among);
    const total = inner.reduce((sum, link) => sum + Math.abs(weight[link]), 0);
    for (const link of inner) score[link] = (arrived[node] * Math.abs(weight[link])) / (total || 1);
  }
  const least = linkShare >= 1 ? 0 : cutoff(score.filter((one) => one > 0), linkShare);
  for (let link = 0; link < m; link++) links[link] = Number(among(link) && score[link] >= least && weight[link] !== 0);
  dropLoose(nodes, links, pinned);
  return { nodes, links, score };
}

// Removes features that get nothing or lead nowhere, and errors that lead nowhere, until none is left.
function dropLoose(nodes, links, pinned) {
  const { n, m, type, source, target } = data.graph;
  const ins = new Int32Array(n), outs = new Int32Array(n);
  for (let link = 0; link < m; link++) {
    if (links[link]) { ins[target[link]] += 1; outs[source[link]] += 1; }
  }
  const loose = (node) => nodes[node] && !pinned(node) && type[node] <= ERROR
    && (outs[node] === 0 || (type[node] === FEATURE && ins[node] === 0));
  const waiting = [];
  for (let node = 0; node < n; node++) if (loose(node)) waiting.push(node);
  while (waiting.length) {
    const node = waiting.pop();
    if (!nodes[node]) continue;
    nodes[node] = 0;
    for (const link of linksOf(data.graph.into, node)) {
      if (links[link]) { links[link] = 0; outs[source[link]] -= 1; if (loose(source[link])) waiting.push(source[link]); }
    }
    for (const link of linksOf(data.graph.from, node)) {
      if (links[link]) { links[link] = 0; ins[target[link]] -= 1; if (loose(target[link])) waiting.push(target[link]); }
    }
  }
}

// Replacement: the share of influence that comes from tokens and not from errors. Completeness: the
// share of inputs that are not errors, weighted by influence; what has no inputs counts as complete.
// Features that aren't `kept` are errors.
function graphScores(kept = () => true) {
  const { n, type } = data.graph;
  const lost = (node) => type[node] === ERROR || (type[node] === FEATURE && !kept(node));
  const arrived = influence(undefined, (node) => !lost(node));
  let tokens = 0, errors = 0, complete = 0, all = 0;
  for (let node = 0; node < n; node++) {
    if (type[node] === TOKEN) tokens += arrived[node];
    if (lost(node)) errors += arrived[node];
    all += arrived[node];
    complete += arrived[node] * (lost(node) ? 1 : 1 - inputShare(node, lost));
  }
  return { replacement: tokens / (tokens + errors || 1), completeness: complete / (all || 1) };
}

// What part of a node's inputs, by absolute weight, comes from nodes that `is(node)`.
function inputShare(node, is) {
  const { into, source, weight } = data.graph;
  let total = 0, part = 0;
  for (const link of linksOf(into, node)) {
    total += Math.abs(weight[link]);
    if (is(source[link])) part += Math.abs(weight[link]);
  }
  return total ? part / total : 0;
}
