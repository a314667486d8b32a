// Beside the graph: the clicked node, or an overview of the graph.
"use strict";

function nodeView(node, record) {
  const { type } = data.graph;
  return [
    nodeHead(node),
    type[node] === FEATURE ? describedNode(node, record) : el("p", { class: "note about" }, aboutOther(node)),
    figuresOf(node, record),
    drawnInPart(node),
    type[node] === TOKEN ? null : edgeTable(node, "into"),
    type[node] === LOGIT ? null : edgeTable(node, "from"),
    record?.top.length ? section("Strongest activations", null, examplesTable(record.top, record.maximum, 6)) : null,
    record?.writes.length ? tokensOf(record.writes) : null,
  ].filter((part) => part !== null);
}

function drawnInPart(node) {
  const links = shownLinks(node).length;
  return links > DRAWN ? el("p", { class: "note about" }, `The ${whole(DRAWN)} strongest of its ${whole(links)} links are drawn.`) : null;
}

function nodeHead(node) {
  const { type, site } = data.graph;
  const feature = featureOf(node);
  const own = feature && site ? el("a", { class: "own", href: `${site}${feature.address}`, target: "_blank", rel: "noopener" }, "Its page") : null;
  const title = type[node] === TOKEN || type[node] === LOGIT ? labelNode(node) : nameOf(node);
  return el("header", {},
    el("h1", {}, glyph(node), title),
    el("p", { class: "site" }, placeInWords(node)),
    data.graph.named.has(node) ? el("p", { class: "given" }, data.graph.named.get(node)) : null,
    el("div", { class: "actions" },
      action("pin", isPinned(node) ? "Unpin" : "Pin", "p", isPinned(node)),
      action("group", groupOf(node) ? `In ${groupOf(node).name}` : "Group", "g", Boolean(groupOf(node))),
      action("rename", "Rename", "r", false), own));
}

function action(what, label, key, on) {
  return el("button", { type: "button", "data-action": what, "aria-pressed": String(on) }, el("span", {}, label), key && el("kbd", {}, key));
}

function placeInWords(node) {
  const { type, row, position, tokens, probability } = data.graph;
  if (type[node] === LOGIT) return `output, probability ${percent(probability[node])}`;
  const at = ["token ", String(position[node]), " ", token(tokens[position[node]])];
  return type[node] === TOKEN ? [...at.slice(0, 2)].join("") : el("span", {}, `layer ${row[node] - 1}, at `, at);
}

function aboutOther(node) {
  const { type } = data.graph;
  if (type[node] === ERROR) return "What the layer's MLP wrote here and the dictionary did not reconstruct. Nothing is known of where it comes from.";
  return type[node] === TOKEN ? "The embedding of a token of the prompt." : "A token that the model may write next; its links are effects on its logit, less the mean of all logits.";
}

function describedNode(node, record) {
  if (record) {
    const shown = descriptionOf(record.explanation);
    for (const failing of shown.querySelectorAll("details")) failing.open = false; // the links are more wanted here
    return shown;
  }
  const text = data.graph.given[node];
  return text ? el("section", { class: "description" }, el("p", { class: "text" }, prose(text))) : null;
}

function figuresOf(node, record) {
  const { type, activation } = data.graph;
  const parts = [];
  const here = activation[node];
  if (type[node] === FEATURE && here !== null) {
    parts.push(figure("Activation here", short(here), record?.maximum ? `${Math.round((100 * here) / record.maximum)}% of its maximum` : ""));
  }
  if (type[node] !== LOGIT) parts.push(figure("Influence", share(view.influence[node]), rankOf(node)));
  if (type[node] === FEATURE || type[node] === LOGIT) {
    parts.push(figure("Error share", percent(inputShare(node, (from) => data.graph.type[from] === ERROR)), "of its inputs"));
  }
  return parts.length ? el("dl", { class: "key" }, parts) : null;
}

function rankOf(node) {
  const { n, type } = data.graph;
  let before = 0, all = 0;
  for (let other = 0; other < n; other++) {
    if (type[other] !== type[node]) continue;
    all += 1;
    if (view.influence[other] > view.influence[node]) before += 1;
  }
  return `${whole(before + 1)} of ${whole(all)} ${["features", "errors", "tokens"][type[node]]}`;
}

// Tokens that it promotes and suppresses, at the target nearest to the output.
function tokensOf(writes) {
  const [target, promoted, suppressed] = writes.at(-1);
  const most = Math.max(...[...promoted, ...suppressed].map(([, value]) => Math.abs(value)), 0);
  return section("Tokens", `Direct effect on logits of one unit of activation${writes.length > 1 ? `, at ${target}` : ""}.`,
    el("div", { class: "pair" }, tokenBars("Promoted", promoted.slice(0, 10), most), tokenBars("Suppressed", suppressed.slice(0, 10), most)));
}

function groupView(one) {
  return [
    el("header", {}, el("h1", {}, one.name), el("p", { class: "site" }, `a group of ${whole(one.nodes.length)} nodes`),
      el("div", { class: "actions" }, action("rename-group", "Rename", null, false), action("ungroup", "Ungroup", null, false))),
    section("Members", null, nodeBars([...one.nodes].sort((a, b) => view.influence[b] - view.influence[a]), (node) => view.influence[node], percent)),
    groupTable(one, "into"), groupTable(one, "from"),
  ];
}

function overviewOf() {
  const { of, title } = data.graph;
  return [
    el("header", {}, el("h1", {}, title), of ? el("p", { class: "site" }, `An attribution graph of ${of}`) : null),
    el("p", { class: "prompt", "aria-label": "Prompt" }, data.graph.tokens.map(promptToken)),
    scoresSection(),
    section("Outputs", null, nodeBars(outputsInOrder(), (node) => data.graph.probability[node], percent)),
    section("Most influential features", "Share of the outputs' probability that flows through each.",
      nodeBars(influential().slice(0, 12), (node) => view.influence[node], percent)),
    leftOut(),
    checksSection(),
  ].filter((part) => part !== null);
}

function promptToken(text, position) {
  const { n, type } = data.graph;
  for (let node = 0; node < n; node++) {
    if (type[node] === TOKEN && data.graph.position[node] === position) {
      return el("span", { class: "word", role: "button", tabindex: 0, "data-node": node }, text);
    }
  }
  return el("span", { class: "word" }, text);
}

function outputsInOrder() {
  const { n, type, probability } = data.graph;
  return Array.from({ length: n }, (_, node) => node).filter((node) => type[node] === LOGIT).sort((a, b) => probability[b] - probability[a]);
}

function nodeBars(nodes, value, shown) {
  const most = nodes.reduce((largest, node) => Math.max(largest, value(node)), 0);
  return el("ul", { class: "bars edges" }, nodes.map((node) => barLine(
    el("button", { type: "button", class: "node", "data-node": node, "data-tip": whereOf(node) },
      glyph(node), el("span", { class: "label" }, labelNode(node)), el("span", { class: "at" }, data.graph.type[node] === LOGIT ? "" : placeOf(node))),
    value(node), most, shown(value(node)))));
}

// The engine's scores of the whole graph, else those of what this file holds; and of what is pinned.
function scoresSection() {
  const { scores, baselines } = data.graph;
  const own = scores.length ? scores : Object.entries(graphScores());
  const note = scores.length ? "Of the whole graph, before pruning." : "Of the nodes and links in this file.";
  const line = (name, value, kind) => barLine(el("span", { class: kind === "good" ? "name own" : "name" }, words(name)), value, 1, value.toFixed(2), kind);
  const beside = baselines.flatMap(([name, values]) => values.map(([score, value]) => [`${score}, ${words(name)}`, value]));
  const pinned = state.pinned.some((node) => data.graph.type[node] === FEATURE) ? Object.entries(graphScores(isPinned)) : [];
  return section("Scores", note, el("ul", { class: "bars scores" },
    own.map(([name, value]) => line(name, value, "good")),
    beside.map(([name, value]) => line(name, value, "base")),
    pinned.map(([name, value]) => line(`pinned: ${name}`, value, "pinned"))));
}

function leftOut() {
  const { left_out, n, m, threshold } = data.graph;
  const facts = [["nodes in this file", whole(n)], ["links in this file", whole(m)], ["node threshold of the file", threshold.toFixed(2)],
    ...left_out.map(([name, value]) => [words(name), short(value)])];
  return section("What is here", null, el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}

// Interventions that tested the graph: what its links predicted against what the model did.
function checksSection() {
  const { checks } = data.graph;
  if (!checks.length) return null;
  const agree = checks.filter(([, predicted, measured]) => Math.sign(predicted) === Math.sign(measured)).length;
  const note = `${whole(checks.length)} interventions: correlation ${correlation(checks).toFixed(2)}, the same sign in ${percent(agree / checks.length)}.`;
  return section("Checked by interventions", note, scatter(checks));
}

function correlation(rows) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const centred = (at) => { const values = rows.map((row) => row[at]); const middle = mean(values); return values.map((value) => value - middle); };
  const [a, b] = [centred(1), centred(2)];
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
}

function scatter(rows) {
  const [width, height, edge] = [380, 240, 34];
  const most = Math.max(...rows.flatMap(([, a, b]) => [Math.abs(a), Math.abs(b)])) || 1;
  const x = (value) => edge + ((value / most + 1) / 2) * (width - edge - 8);
  const y = (value) => height - edge - ((value / most + 1) / 2) * (height - edge - 8);
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Measured effects against predicted ones" },
    svg("line", { class: "grid", x1: x(-most), y1: y(-most), x2: x(most), y2: y(most) }),
    svg("line", { class: "axis", x1: x(-most), x2: x(most), y1: y(0), y2: y(0) }), svg("line", { class: "axis", x1: x(0), x2: x(0), y1: y(-most), y2: y(most) }),
    rows.map(([what, predicted, measured]) => svg("circle", { class: "point", cx: x(predicted), cy: y(measured), r: 3.5, "data-tip": `${what}: predicted ${short(predicted)}, measured ${short(measured)}` })),
    svg("text", { x: width - 8, y: height - 12, "text-anchor": "end" }, "predicted effect"), svg("text", { x: edge, y: 14 }, "measured"));
}
