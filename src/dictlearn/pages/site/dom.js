// Makes elements and formats numbers. Text from data is never markup: nothing on this site parses HTML.
"use strict";

// el("a", {class: "plain", href: "#/0/1"}, "text", node, ...); null children are left out.
function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

// Whitespace as signs, so that a token of whitespace alone is visible.
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "·" };

// A token by itself, with its whitespace as muted signs.
function token(text) {
  const parts = text.split(/([\n\r\t ])/).filter((part) => part !== "");
  return el("code", { class: "token" }, ...parts.map((p) => (p in SIGNS ? sign(SIGNS[p]) : p)));
}

// Prose in which Markdown's code marks quote what may be a token; marks.py reads them in the same way.
function prose(text) {
  const pieces = text.split(/(`+)/); // text, marks, text, ..., text
  const closing = new Map(), latest = new Map();
  for (let i = pieces.length - 2; i > 0; i -= 2) {
    if (latest.has(pieces[i])) closing.set(i, latest.get(pieces[i]));
    latest.set(pieces[i], i);
  }
  const parts = [];
  let start = 0;
  for (let i = 1; i < pieces.length; i += 2) {
    if (!closing.has(i)) continue;
    const end = closing.get(i);
    parts.push(pieces.slice(start, i).join(""), token(inside(pieces[i], pieces.slice(i + 1, end).join(""))));
    start = end + 1;
    i = end;
  }
  return [...parts, pieces.slice(start).join("")].filter((part) => part !== "");
}

// Marks of several backticks are separated from their content by a space.
function inside(marks, code) {
  return marks.length > 1 && code.length > 2 && code.startsWith(" ") && code.endsWith(" ") ? code.slice(1, -1) : code;
}

function sign(text) {
  return el("span", { class: "sign" }, text);
}

function whole(number) {
  return number.toLocaleString("en-US");
}

// Formats numbers of one quantity so that they align: all have as many decimals as give the
// largest, `largest`, three digits.
function alike(largest) {
  const size = Math.abs(largest);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return (number) => (number === 0 ? "0" : number.toExponential(1));
  const decimals = size === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(size)));
  return (number) => number.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

// Three significant digits, no exponent between 0.001 and a million.
function short(number) {
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return number.toExponential(1);
  return size >= 1000 ? whole(Math.round(number)) : String(Number(number.toPrecision(3)));
}

function signed(number) {
  return (number > 0 ? "+" : number < 0 ? "−" : "") + Math.abs(number).toFixed(2);
}

// A share as a percentage of two decimals, as in every report.
function share(number) {
  return number > 0 && number < 5e-5 ? "<0.01%" : `${(100 * number).toFixed(2)}%`;
}

// 10 ** exponent as a percentage.
function power(exponent) {
  return exponent < -6 ? `1e${exponent + 2}%` : `${(10 ** (exponent + 2)).toFixed(Math.max(0, -exponent - 2))}%`;
}

// balanced_accuracy -> balanced accuracy
function words(name) {
  return name.replaceAll("_", " ");
}
