// What a reader takes away: pictures of the two drawings, the pinned nodes, a link.
"use strict";

const SHARPNESS = 3; // pixels of a PNG for one of the screen

const drawings = { graph: drawGraph, subgraph: drawSubgraph };

// The drawing as an SVG document, on the page's paper.
function svgOf(which, width, height) {
  const root = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, width, height });
  root.append(svg("rect", { width, height, fill: colours().paper }));
  drawings[which](svgPainter(root), width, height);
  return new XMLSerializer().serializeToString(root);
}

function canvasOf(which, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * SHARPNESS, height * SHARPNESS];
  const context = canvas.getContext("2d");
  context.scale(SHARPNESS, SHARPNESS);
  context.fillStyle = colours().paper;
  context.fillRect(0, 0, width, height);
  drawings[which](canvasPainter(context), width, height);
  return canvas;
}

// The pinned nodes with what is known of them, and the state as circuit-tracer's qParams.
function pinnedList() {
  const { title, name, row, position, type, activation, tokens } = data.graph;
  const kinds = ["feature", "error", "token", "output"];
  return {
    graph: title,
    qParams: {
      pinnedIds: state.pinned.map((node) => name[node]), supernodes: supernodes(), linkType: state.links,
      clickedId: state.clicked === null ? "" : name[state.clicked], sg_pos: state.pinned.length ? subgraphPlaces() : "",
    },
    nodes: state.pinned.map((node) => ({
      node_id: name[node], type: kinds[type[node]], name: nameOf(node), label: labelOf(node), layer: layerName(row[node]),
      position: position[node], token: tokens[position[node]], activation: activation[node], influence: view.influence[node],
      supernode: groupOf(node)?.name ?? null,
    })),
  };
}

function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function sizeOf(which) {
  const canvas = byId(`${which}-canvas`);
  const inSight = canvas.clientWidth && canvas.clientHeight;
  return inSight ? [canvas.clientWidth, canvas.clientHeight] : [1000, 600];
}

const EXPORTS = {
  "graph-png": () => savePicture("graph"), "graph-svg": () => saveDrawing("graph"),
  "subgraph-png": () => savePicture("subgraph"), "subgraph-svg": () => saveDrawing("subgraph"),
  pinned: () => save(`${data.graph.title}-pinned.json`, new Blob([`${JSON.stringify(pinnedList(), null, 1)}\n`], { type: "application/json" })),
  link: copyLink,
};

function savePicture(which) {
  canvasOf(which, ...sizeOf(which)).toBlob((blob) => save(`${data.graph.title}-${which}.png`, blob), "image/png");
}

function saveDrawing(which) {
  save(`${data.graph.title}-${which}.svg`, new Blob([svgOf(which, ...sizeOf(which))], { type: "image/svg+xml" }));
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied; it holds the whole view.");
  } catch {
    say("The address of this page is the link; it holds the whole view.");
  }
}
