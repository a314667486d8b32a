// All graphs of a folder: their prompts, likeliest outputs and scores.
"use strict";

const data = { graphs: [] };

const dictlearn = {
  graphs(graphs) {
    data.graphs = graphs;
  },
};

const byName = new Intl.Collator("en", { numeric: true }).compare;
const scoreIn = ({ scores }, wanted) => scores.find(([name]) => name === wanted)?.[1] ?? null;

// The orders that can be chosen: by name, by size, and by each score that any graph has.
function orders() {
  const names = [...new Set(data.graphs.flatMap(({ scores }) => scores.map(([name]) => name)))];
  const by = (value) => (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity);
  return new Map([
    ["name", (a, b) => byName(a.title, b.title)], ["tokens", by(({ tokens }) => tokens)], ["features", by(({ features }) => features)],
    ...names.map((name) => [name, by((graph) => scoreIn(graph, name))]),
  ]);
}

// The token of a logit, out of its label: Output "tok" (p=0.123)
function outputIn(label) {
  return /^Output "([^]*)" \(p=[\d.e-]+\)$/.exec(label)?.[1] ?? label;
}

function graphRow(graph) {
  const { address, title, of, prompt, outputs, scores, tokens, features, links } = graph;
  return el("article", {},
    el("a", { class: "main", href: address },
      el("h2", {}, title),
      el("p", { class: "prompt" }, prompt.trim() || "no prompt")),
    el("p", { class: "outputs" }, outputs.map(([label, chance]) => el("span", {}, token(outputIn(label)), el("small", {}, `${(100 * chance).toFixed(1)}%`)))),
    scores.length ? el("ul", { class: "bars" }, scores.map(([name, value]) => barLine(el("span", { class: "name" }, words(name)), value, 1, value.toFixed(2), "good"))) : el("p", {}),
    el("p", { class: "note" }, `${whole(tokens)} tokens, ${whole(features)} features, ${whole(links)} links${of ? `, ${of}` : ""}`));
}

function show() {
  const asked = byId("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = ({ title, prompt, outputs }) => [title, prompt, ...outputs.map(([label]) => outputIn(label))].join("\n").toLowerCase();
  const found = data.graphs.filter((graph) => asked.every((word) => text(graph).includes(word))).sort(orders().get(byId("sort").value));
  byId("graphs").replaceChildren(...found.map(graphRow));
  byId("count").textContent = `${whole(found.length)} of ${whole(data.graphs.length)}`;
}

async function start() {
  try {
    await load("graphs.js");
  } catch (error) {
    byId("graphs").replaceChildren(el("p", { class: "warning" }, `${error.message}: write the page again with dictlearn attribute.`));
    return;
  }
  byId("sort").append(...[...orders().keys()].map((name) => el("option", { value: name }, words(name))));
  byId("query").addEventListener("input", show);
  byId("sort").addEventListener("input", show);
  addEventListener("pointerover", showTip);
  show();
  document.documentElement.dataset.ready = "true";
}

start();
