// Examples as a concordance: one line each, with the peaks in one column, so that common patterns are
// visible. An opened line shows its whole context with its line breaks.
//
// An example is [document, window, position, peak, pieces]; a piece is silent text, or [text,
// activation] for a token on which the feature fires; `peak` is the index of the peak's piece.
"use strict";

const LEVELS = 10; // shades of a mark, as in style.css

// The first `shown` of them, and a button for the rest.
function examplesTable(examples, maximum, shown) {
  const lines = (some) => some.map((example) => exampleLine(example, maximum));
  const box = el("div", { class: "examples" }, lines(examples.slice(0, shown)));
  if (examples.length <= shown) return box;
  const more = el("button", { type: "button", class: "more" }, `${examples.length - shown} more`);
  more.addEventListener("click", () => more.replaceWith(...lines(examples.slice(shown))));
  box.append(more);
  return box;
}

function peakOf([, , , peak, pieces]) {
  return pieces[peak][1];
}

function exampleLine(example, maximum) {
  const [document, window, position, peak, pieces] = example;
  const line = el("details", {},
    el("summary", {},
      el("span", { class: "value" }, alike(maximum)(peakOf(example))),
      el("span", { class: "left" }, el("span", {}, pieces.slice(0, peak).map((p) => piece(p, maximum, flat)))),
      el("span", { class: "right" }, pieces.slice(peak).map((p, i) => piece(p, maximum, flat, i === 0)))));
  line.addEventListener("toggle", () => {
    if (line.children.length > 1) return;
    line.append(el("div", { class: "whole" },
      el("p", {}, pieces.map((p, i) => piece(p, maximum, broken, i === peak))),
      el("small", {}, `document ${whole(document)}, window ${whole(window)}, token ${whole(position)}`)));
  });
  return line;
}

function piece(content, maximum, shown, picked = false) {
  if (typeof content === "string") return shown(content, false);
  const [text, value] = content;
  const level = value > 0 ? Math.max(1, Math.ceil((LEVELS * value) / (maximum || 1))) : 0;
  const part = maximum > 0 ? `, ${Math.round((100 * value) / maximum)}% of its maximum` : "";
  return el("mark", { class: `m${Math.min(LEVELS, level)}${picked ? " picked" : ""}`, "data-tip": `${alike(maximum)(value)}${part}` },
    shown(text, true));
}

// The text on one line: breaks are signs, and indentation is dropped unless the feature fires on it.
function flat(text, marked) {
  const parts = marked ? text.split(/([\n\r\t]| (?= )|^ +$)/) : text.replace(/[^\S\n]*\n\s*/g, "\n").replace(/[^\S\n]+/g, " ").split(/(\n)/);
  return parts.filter((part) => part !== "").map((part) => {
    if (part in SIGNS) return sign(SIGNS[part]);
    return marked && /^ +$/.test(part) ? sign("·".repeat(Math.min(8, part.length))) : part;
  });
}

// The text with its line breaks; a break on which the feature fires also shows its sign.
function broken(text, marked) {
  if (!marked) return [text];
  return text.split(/([\n\t])/).filter((part) => part !== "").flatMap((part) => (part in SIGNS ? [sign(SIGNS[part]), part] : [part]));
}
