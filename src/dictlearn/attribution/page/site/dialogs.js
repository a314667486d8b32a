// Questions and answers over the page: help, the name of a group, suggested groups.
"use strict";

const KEYS = [
  ["← → ↑ ↓", "move between nodes"], ["p", "pin the node, or unpin it"], ["g", "group it, or the pinned nodes"],
  ["r", "give it a name of your own"], ["/", "search"], ["Enter", "open the first one found"],
  ["s", "suggest groups"], ["+ − 0", "closer, further, the whole graph"], ["Esc", "back to the overview"], ["?", "this help"],
];

const SIGNS_SHOWN = [
  ["feature", "a feature; larger ones carry more influence"], ["error", "what the dictionary did not reconstruct in a layer"],
  ["token", "a token of the prompt"], ["output", "a token that the model may write next"],
];

function helpDialog() {
  openDialog("Keys and signs", [
    el("dl", { class: "keys" }, KEYS.map(([key, what]) => keyHelp(key, what))),
    el("dl", { class: "signs" },
      SIGNS_SHOWN.map(([kind, what]) => el("div", {}, el("dt", {}, el("span", { class: `glyph ${kind}` })), el("dd", {}, what))),
      el("div", {}, el("dt", {}, el("span", { class: "stroke up" })), el("dd", {}, "a link that raises its target")),
      el("div", {}, el("dt", {}, el("span", { class: "stroke down" })), el("dd", {}, "a link that lowers it"))),
    el("p", { class: "note" }, "Click a node to see its links; shift-click pins it. Drag one box onto another to group them; a box's foot shows how much of its inputs is pinned, and how much is error. Scroll with ctrl, or pinch, to come closer; drag to move."),
  ]);
}

// Asks for the name of a group for the clicked node, or for all pinned ones that have none.
function groupDialog() {
  const nodes = state.clicked !== null ? [state.clicked] : state.pinned.filter((node) => !groupOf(node));
  if (!nodes.length) { say("Click a node or pin some first."); return; }
  const current = groupOf(nodes[0]);
  const name = el("input", { type: "text", id: "group-name", "aria-label": "Name of the group", autocomplete: "off" });
  name.value = current?.name ?? nameForGroup(nodes);
  const existing = state.groups.filter((one) => one !== current).map((one) => choice(one.name, () => change(() => group([...one.nodes, ...nodes], one.name))));
  const form = el("form", { method: "dialog" }, name, el("button", { type: "submit", class: "primary" }, current ? "Rename group" : "Make group"));
  form.addEventListener("submit", () => change(() => (current ? (current.name = name.value || current.name) : group(nodes, name.value || "group"))));
  openDialog(nodes.length === 1 ? `Group ${labelOf(nodes[0])}` : `Group ${nodes.length} pinned nodes`, [
    form,
    existing.length ? el("div", { class: "choices" }, el("p", { class: "note" }, "Or put it into"), existing) : null,
    current ? choice(`Take it out of ${current.name}`, () => change(() => ungroup(nodes))) : null,
  ]);
  name.select();
}

function renameDialog() {
  if (state.clicked === null) return;
  const node = state.clicked;
  const name = el("input", { type: "text", id: "node-name", "aria-label": "Your name for the node", autocomplete: "off" });
  name.value = data.graph.named.get(node) ?? labelOf(node);
  const form = el("form", { method: "dialog" }, name, el("button", { type: "submit", class: "primary" }, "Rename"));
  form.addEventListener("submit", () => change(() => (name.value.trim() ? data.graph.named.set(node, name.value.trim()) : data.graph.named.delete(node))));
  openDialog(`Name ${nameOf(node)}`, [form, el("p", { class: "note" }, "Only the link to this view keeps it. Leave it empty to have the description again.")]);
  name.select();
}

function nameDialog(one) {
  const name = el("input", { type: "text", id: "group-name", "aria-label": "Name of the group", autocomplete: "off" });
  name.value = one.name;
  const form = el("form", { method: "dialog" }, name, el("button", { type: "submit", class: "primary" }, "Rename"));
  form.addEventListener("submit", () => change(() => { one.name = name.value.trim() || one.name; }));
  openDialog(`Rename ${one.name}`, [form]);
  name.select();
}

function suggestDialog() {
  const found = suggestions();
  const rows = found.map((one) => {
    const box = el("input", { type: "checkbox", checked: "" });
    const line = el("label", { class: "suggestion" }, box, el("span", {}, el("b", {}, one.name), el("small", {}, one.nodes.map((node) => `${nameAt(node)}  ${labelOf(node)}`).join("\n"))));
    return { box, line, one };
  });
  const form = el("form", { method: "dialog" }, el("div", { class: "suggestions" }, rows.map(({ line }) => line)),
    found.length ? el("button", { type: "submit", class: "primary" }, "Group these") : null);
  form.addEventListener("submit", () => change(() => rows.filter(({ box }) => box.checked).forEach(({ one }) => group(one.nodes, one.name))));
  openDialog("Suggested groups", [
    el("p", { class: "note" }, found.length
      ? "Features with like descriptions, like decoders and the same neighbours in this graph. They are pinned with their groups."
      : "No features of this graph are alike enough. Pin three or more to look among them alone."),
    form,
  ]);
}

function choice(label, act) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", () => { byId("dialog").close(); act(); });
  return button;
}

function openDialog(title, content) {
  const close = el("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => byId("dialog").close());
  byId("dialog").replaceChildren(el("header", {}, el("h2", { tabindex: -1, autofocus: "" }, title), close), ...content.filter((part) => part !== null));
  byId("dialog").showModal();
}

// Tells something, on the screen for a while and to screen readers.
function say(sentence) {
  const spoken = byId("spoken");
  spoken.textContent = sentence;
  spoken.dataset.shown = "true";
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { delete spoken.dataset.shown; }, 4000);
}
