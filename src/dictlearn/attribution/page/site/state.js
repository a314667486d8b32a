// What the reader chose. All of it is in the address, in the parameters of circuit-tracer's page and
// Neuronpedia's: clickedId, pinnedIds, supernodes, linkType, pruningThreshold, clerps, sg_pos; and
// edgeThreshold, which is ours.
"use strict";

const LINK_TYPES = ["both", "input", "output"];
const MOST_PINNED = 200; // more make no drawing; circuit-tracer's page has the same limit

const state = {
  clicked: null, pinned: [], groups: [], links: "both", nodeShare: 1, linkShare: 1, // groups: {id, name, nodes}
  places: new Map(), // where boxes of the subgraph were dragged: key -> [x, y] in thousandths
};

const isPinned = (node) => state.pinned.includes(node);
const groupOf = (node) => state.groups.find((group) => group.nodes.includes(node)) ?? null;

function pin(nodes, on = true) {
  const others = state.pinned.filter((node) => !nodes.includes(node));
  state.pinned = on ? [...others, ...nodes].slice(-MOST_PINNED) : others;
  tidyGroups();
}

// Puts nodes into one group and out of all others; returns it.
function group(nodes, name) {
  for (const one of state.groups) one.nodes = one.nodes.filter((node) => !nodes.includes(node));
  const made = { id: Math.max(-1, ...state.groups.map(({ id }) => id)) + 1, name, nodes: [...new Set(nodes)] };
  state.groups.push(made);
  pin(nodes.filter((node) => !isPinned(node)));
  tidyGroups();
  return made;
}

function ungroup(nodes) {
  for (const one of state.groups) one.nodes = one.nodes.filter((node) => !nodes.includes(node));
  tidyGroups();
}

// Groups hold pinned nodes alone, and none is empty.
function tidyGroups() {
  for (const one of state.groups) one.nodes = one.nodes.filter(isPinned);
  state.groups = state.groups.filter((one) => one.nodes.length);
}

function address() {
  const { name, threshold } = data.graph;
  const asked = new URLSearchParams();
  if (state.clicked !== null) asked.set("clickedId", name[state.clicked]);
  if (state.pinned.length) asked.set("pinnedIds", state.pinned.map((node) => name[node]).join(","));
  if (state.groups.length) asked.set("supernodes", JSON.stringify(supernodes()));
  if (state.links !== "both") asked.set("linkType", state.links);
  if (state.nodeShare < threshold) asked.set("pruningThreshold", state.nodeShare.toFixed(2));
  if (state.linkShare < 1) asked.set("edgeThreshold", state.linkShare.toFixed(2));
  if (data.graph.named.size) asked.set("clerps", JSON.stringify(clerps()));
  if (state.places.size) asked.set("sg_pos", subgraphPlaces());
  return `#${asked}`;
}

const supernodes = () => state.groups.map(({ name, nodes }) => [name, ...nodes.map((node) => data.graph.name[node])]);
const clerps = () => [...data.graph.named].map(([node, label]) => [data.graph.name[node], label]);

// Places of all boxes in thousandths of the drawing, in the order of `boxKeys`.
function subgraphPlaces() {
  return boxKeys().map((key) => state.places.get(key) ?? subgraph.placed.get(key) ?? [500, 500]).flat().map(Math.round).join(" ");
}

// Boxes of the subgraph: pinned nodes without a group, then groups.
function boxKeys() {
  return [...state.pinned.filter((node) => !groupOf(node)).map((node) => `n${node}`), ...state.groups.map(({ id }) => `g${id}`)];
}

function readAddress() {
  const asked = new URLSearchParams(location.hash.replace(/^#/, ""));
  const { asked: given, threshold } = data.graph;
  const fresh = ![...asked.keys()].length; // the file says how it opens
  const parameter = (key) => (fresh ? given[key] : asked.get(key));
  const share = (key, whole) => {
    const number = Number(asked.get(key));
    return asked.get(key) && number >= 0 && number <= 1 ? Math.min(number, whole) : whole;
  };
  const pinned = parameter("pinnedIds") ?? [];
  Object.assign(state, {
    clicked: numberOf(parameter("clickedId")), pinned: [], groups: [], places: new Map(),
    links: LINK_TYPES.includes(parameter("linkType")) ? parameter("linkType") : "both",
    nodeShare: share("pruningThreshold", threshold), linkShare: share("edgeThreshold", 1),
  });
  pin(numbers(Array.isArray(pinned) ? pinned : String(pinned).split(",")));
  for (const one of listed(parameter("supernodes"))) {
    if (Array.isArray(one) && one.length > 1) group(numbers(one.slice(1)), String(one[0]));
  }
  data.graph.named = new Map(listed(parameter("clerps")).flatMap((one) => {
    const node = Array.isArray(one) ? numberOf(one[0]) : null;
    return node === null ? [] : [[node, String(one[1])]];
  }));
  const places = String(parameter("sg_pos") ?? "").split(" ").map(Number);
  if (places.length > 1 && places.every(Number.isFinite)) {
    boxKeys().forEach((key, i) => { if (2 * i + 1 < places.length) state.places.set(key, [places[2 * i], places[2 * i + 1]]); });
  }
}

const numbers = (names) => [...new Set(names.map(numberOf).filter((node) => node !== null))];

// The node of a name: ours, or Neuronpedia's, in which the feature is the Cantor number.
function numberOf(name) {
  const { number, type, row, index } = data.graph;
  if (number.has(name)) return number.get(name);
  const parts = /^(\d+)_(\d+)_(\d+)$/.exec(String(name));
  if (!parts) return null;
  const [layer, feature, position] = parts.slice(1).map(Number);
  const cantor = (node) => ((row[node] - 1 + index[node]) * (row[node] + index[node])) / 2 + index[node];
  for (const node of number.values()) {
    if (type[node] === FEATURE && row[node] === layer + 1 && data.graph.position[node] === position && cantor(node) === feature) return node;
  }
  return null;
}

function listed(value) {
  if (Array.isArray(value)) return value;
  try { const read = JSON.parse(value || "[]"); return Array.isArray(read) ? read : []; } catch { return []; }
}
