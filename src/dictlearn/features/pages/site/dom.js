// Elements and numbers. Text from data goes in as text, never as markup: nothing here or elsewhere
// on this site parses HTML.
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

// Whitespace as signs, so that a token that is nothing else can be seen.
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "·" };

// A token on its own: its whitespace as muted signs.
function token(text) {
  const parts = text.split(/([\n\r\t ])/).filter((part) => part !== "");
  return el("code", { class: "token" }, ...parts.map((p) => (p in SIGNS ? sign(SIGNS[p]) : p)));
}

// Prose in which `...` quotes what may be a token.
function prose(text) {
  return text.split(/(`[^`]+`)/).filter((part) => part !== "").map((part) => (/^`[^`]+`$/.test(part) ? token(part.slice(1, -1)) : part));
}

function sign(text) {
  return el("span", { class: "sign" }, text);
}

function whole(number) {
  return number.toLocaleString("en-US");
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

// A share of tokens as a percentage of two digits.
function share(number) {
  if (number === 0) return "0%";
  const percent = 100 * number;
  return (percent < 1e-4 ? percent.toExponential(0) : String(Number(percent.toPrecision(2)))) + "%";
}

// balanced_accuracy -> balanced accuracy
function words(name) {
  return name.replaceAll("_", " ");
}
