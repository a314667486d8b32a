// Parts that pages are made of.
"use strict";

function section(title, note, ...content) {
  return el("section", {}, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, ...content);
}

function figure(name, value, beside) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "beside" }, beside));
}

function tokenBars(title, tokens, most) {
  return el("div", {}, el("h3", {}, title),
    el("ul", { class: "bars tokens" }, tokens.map(([text, value]) => barLine(token(text), value, most, signed(value)))));
}

function keyHelp(key, what) {
  return el("div", {}, el("dt", {}, key.split(" ").map((one) => el("kbd", {}, one))), el("dd", {}, what));
}
