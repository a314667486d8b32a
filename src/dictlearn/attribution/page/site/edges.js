// The links of a node as a table: where from or where to, how strong.
"use strict";

const ROWS_SHOWN = 8;
const SORTS = {
  size: { label: "strength", by: (link) => -Math.abs(data.graph.weight[link]) },
  weight: { label: "weight", by: (link) => -data.graph.weight[link] },
  layer: { label: "layer", by: (link, end) => data.graph.row[end(link)] },
  position: { label: "token", by: (link, end) => data.graph.position[end(link)] },
};
const sorted = { by: "size", back: false }; // the same for both tables, and kept from node to node

// `side` is "into" or "from".
function edgeTable(node, side) {
  const { source, target, weight } = data.graph;
  const end = side === "into" ? (link) => source[link] : (link) => target[link];
  const all = [...linksOf(data.graph[side], node)];
  const links = all.filter((link) => view.shown.links[link]);
  const most = links.length ? Math.abs(weight[links[0]]) : 0;
  const total = all.reduce((sum, link) => sum + Math.abs(weight[link]), 0);
  const body = el("ul", { class: "bars edges" });
  const fill = (shown) => {
    const key = SORTS[sorted.by].by;
    const lines = [...links].sort((a, b) => (key(a, end) - key(b, end)) * (sorted.back ? -1 : 1));
    body.replaceChildren(...lines.slice(0, shown).map((link) => edgeLine(end(link), weight[link], most, side === "into" ? total : 0)));
    if (lines.length > shown) {
      const more = el("button", { type: "button", class: "more" }, `${whole(lines.length - shown)} more`);
      more.addEventListener("click", () => fill(shown + 100));
      body.append(el("li", { class: "rest" }, more));
    }
  };
  fill(ROWS_SHOWN);
  const hidden = all.length - links.length;
  const title = side === "into" ? "From" : "To";
  return el("section", { class: "edge-table" },
    el("h2", {}, title, " ", el("small", {}, `${whole(links.length)}${hidden ? `, ${whole(hidden)} pruned` : ""}`)),
    links.length ? sortButtons(() => fill(ROWS_SHOWN)) : null,
    links.length ? body : el("p", { class: "note" }, "None."));
}

// What the members of a group get from nodes outside it, or give them: [node, weight], the strongest first.
function groupLinks({ nodes }, side) {
  const { source, target, weight } = data.graph;
  const end = side === "into" ? source : target;
  const sums = new Map();
  for (const link of nodes.flatMap((node) => [...linksOf(data.graph[side], node)])) {
    if (view.shown.links[link] && !nodes.includes(end[link])) sums.set(end[link], (sums.get(end[link]) ?? 0) + weight[link]);
  }
  return [...sums].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
}

function groupTable(one, side) {
  const links = groupLinks(one, side);
  const most = Math.abs(links[0]?.[1] ?? 0);
  return section(side === "into" ? "From" : "To", "Sums over its members.", links.length
    ? el("ul", { class: "bars edges" }, links.slice(0, 2 * ROWS_SHOWN).map(([node, sum]) => edgeLine(node, sum, most, 0)))
    : el("p", { class: "note" }, "None."));
}

function sortButtons(again) {
  const buttons = Object.entries(SORTS).map(([key, { label }]) => {
    const button = el("button", { type: "button", "data-sort": key, "aria-pressed": String(sorted.by === key) }, label);
    button.addEventListener("click", () => {
      sorted.back = sorted.by === key && !sorted.back;
      sorted.by = key;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      again();
    });
    return button;
  });
  return el("div", { class: "sorts", role: "group", "aria-label": "Sort by" }, buttons);
}

function edgeLine(node, value, most, total) {
  const link = el("button", { type: "button", class: "node", "data-node": node, "data-tip": whereOf(node) },
    glyph(node), el("span", { class: "label" }, labelNode(node)), el("span", { class: "at" }, placeOf(node)));
  const part = total ? `${signedShort(value)} · ${percent(Math.abs(value) / total)}` : signedShort(value);
  return barLine(link, value, most, part);
}

// A label that is a token stands in its box, as tokens do elsewhere; an unreliable one is marked.
function labelNode(node) {
  const { type, tokens, position, named } = data.graph;
  if (named.has(node)) return named.get(node);
  if (type[node] === TOKEN) return token(tokens[position[node]]);
  if (type[node] === LOGIT) return token(outputOf(node));
  const feature = featureOf(node);
  if (feature?.text) return el("span", { class: feature.status === UNRELIABLE && "doubtful" }, prose(feature.text));
  if (!feature || data.graph.given[node]) return labelOf(node);
  return el("span", { class: "fired" }, feature.tokens || feature.name);
}

function placeOf(node) {
  const { type, row } = data.graph;
  return type[node] === TOKEN ? `#${data.graph.position[node]}` : type[node] === LOGIT ? percent(data.graph.probability[node]) : `L${row[node] - 1} #${data.graph.position[node]}`;
}

function whereOf(node) {
  const { type, tokens, position, row } = data.graph;
  const at = `token ${position[node]} ${visible(tokens[position[node]]) || ""}`;
  return type[node] === LOGIT ? "an output" : type[node] === TOKEN ? at : `${nameOf(node)}, layer ${row[node] - 1}, ${at}`;
}

function glyph(node) {
  const { type } = data.graph;
  return el("span", { class: `glyph ${["feature", "error", "token", "output"][type[node]]}${isPinned(node) ? " pinned" : ""}` });
}

function signedShort(number) {
  return `${number > 0 ? "+" : number < 0 ? "−" : ""}${short(Math.abs(number))}`;
}
