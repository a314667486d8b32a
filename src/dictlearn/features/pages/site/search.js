// Filters and sorts the list of features. Sorted orders of all rows are kept, so that a keystroke costs
// one pass over strings.
"use strict";

const SORTS = {
  number: { label: "number", by: (row) => row },
  density: { label: "density, high first", by: (row) => -data.density[row] },
  rare: { label: "density, low first", by: (row) => data.density[row] || Infinity },
  score: { label: "score, best first", by: (row) => (isNaN(data.score[row]) ? Infinity : -data.score[row]) },
  worst: { label: "score, worst first", by: (row) => (isNaN(data.score[row]) ? Infinity : data.score[row]) },
  maximum: { label: "maximum activation", by: (row) => -data.maximum[row] },
  output: { label: "output score, high first", scored: true, by: (row) => (isNaN(data.output[row]) ? Infinity : -data.output[row]) },
  text: { label: "description, A to Z", by: null },
  centre: { label: "target, first to last", several: true, by: (row) => (isNaN(data.centre[row]) ? Infinity : data.centre[row]) },
  part: { label: "norm on one target", several: true, by: (row) => (isNaN(data.part[row]) ? Infinity : -data.part[row]) },
};

const live = (row) => data.density[row] > 0;

// Described, unreliable, without a description and dead are all features, each once.
const SHOWN = {
  all: { label: "all", has: () => true },
  live: { label: "live", has: live },
  reliable: { label: "described", has: (row) => live(row) && data.status[row] === RELIABLE },
  unreliable: { label: "unreliable", has: (row) => live(row) && data.status[row] === UNRELIABLE },
  none: { label: "no description", has: (row) => live(row) && data.status[row] === NONE },
  steers: { label: "output score 0.01 or more", scored: true, has: (row) => data.output[row] >= 0.01 },
  dead: { label: "dead", has: (row) => !live(row) },
};

const orders = new Map();

function ordered(sort) {
  if (!orders.has(sort)) {
    const order = Uint32Array.from({ length: data.rows }, (_, row) => row);
    if (sort === "text") {
      const { compare } = new Intl.Collator("en", { numeric: true });
      const keys = data.text.map((text, row) => text || (data.tokens[row] ? "\uffff" : "\uffff\uffff"));
      order.sort((a, b) => compare(keys[a], keys[b]) || a - b);
    } else if (sort !== "number") {
      const keys = Float64Array.from(order, SORTS[sort].by);
      order.sort((a, b) => keys[a] - keys[b] || a - b);
    }
    orders.set(sort, order);
  }
  return orders.get(sort);
}

// Rows that hold every word of `query` in description or tokens; a number alone, or site/number,
// finds that feature too, and first. `site` is a source and `target` a target, or null for all.
function search({ query, sort, show, site, target }) {
  const asked = query.toLowerCase().split(/\s+/).filter(Boolean);
  const named = numberedRows(query.trim());
  const { has } = SHOWN[show];
  const asks = (row) => (site === null || sourceOf(row) === site) && (target === null || writesMostTo(row, target)) && has(row);
  const found = named.filter(asks);
  const first = new Set(found);
  for (const row of ordered(sort)) {
    if (!asks(row) || first.has(row)) continue;
    const text = data.searched[row];
    if (asked.every((word) => text.includes(word))) found.push(row);
  }
  return found;
}

function writesMostTo(row, target) {
  return !isNaN(data.part[row]) && data.target[row] === target;
}

function numberedRows(query) {
  const match = /^(?:(.+)\/)?(\d+)$/.exec(query);
  if (!match || Number(match[2]) >= data.info.n_features) return [];
  const { sites } = data.info;
  const sources = sites.map((_, i) => i).filter((i) => !match[1] || sites[i] === match[1] || String(i) === match[1]);
  return sources.map((source) => rowOf(source, Number(match[2])));
}
