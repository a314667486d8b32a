// One drawing, two painters: on a canvas, which the screen and a PNG show, and as SVG. A style is {fill,
// stroke, width, opacity, dash}; text also has {size, weight, anchor, angle, mono}.
"use strict";

const SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif';
const MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';

const font = ({ size = 12, weight = 400, mono = false }) => `${weight} ${size}px ${mono ? MONO : SANS}`;

// The page's colours as they are now, light or dark.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "muted", "rule", "wash", "first", "second", "third", "fourth"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

const measuring = document.createElement("canvas").getContext("2d");
const widths = new Map();

function widthOf(text, style = {}) {
  const key = `${font(style)}\n${text}`;
  if (!widths.has(key)) {
    measuring.font = font(style);
    widths.set(key, measuring.measureText(text).width);
  }
  return widths.get(key);
}

// The text, cut with an ellipsis to a width.
function fitted(text, width, style = {}) {
  if (widthOf(text, style) <= width) return text;
  const letters = [...text];
  let low = 0, high = letters.length; // the longest beginning that fits
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (widthOf(`${letters.slice(0, middle).join("")}…`, style) <= width) low = middle; else high = middle - 1;
  }
  return low ? `${letters.slice(0, low).join("").trimEnd()}…` : "";
}

// The text on up to `most` lines of a width.
function lines(text, width, most, style = {}) {
  const words = text.split(/\s+/).filter(Boolean);
  const found = [];
  while (words.length && found.length < most - 1) {
    let line = words.shift();
    while (words.length && widthOf(`${line} ${words[0]}`, style) <= width) line += ` ${words.shift()}`;
    found.push(fitted(line, width, style));
  }
  if (words.length) found.push(fitted(words.join(" "), width, style));
  return found;
}

function canvasPainter(context) {
  const paint = (path, { fill, stroke, width = 1, opacity = 1, dash }) => {
    context.globalAlpha = opacity;
    if (fill) { context.fillStyle = fill; context.fill(path); }
    if (stroke) {
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.setLineDash(dash ?? []);
      context.stroke(path);
    }
    context.globalAlpha = 1;
  };
  const path = (draw) => { const one = new Path2D(); draw(one); return one; };
  return {
    curve: (x1, y1, x2, y2, style) => paint(path((p) => { p.moveTo(x1, y1); p.bezierCurveTo(...bends(x1, y1, x2, y2), x2, y2); }), style),
    circle: (x, y, r, style) => paint(path((p) => p.arc(x, y, r, 0, 2 * Math.PI)), style),
    box: (x, y, w, h, r, style) => paint(path((p) => p.roundRect(x, y, w, h, r)), style),
    shape: (points, style) => paint(path((p) => { points.forEach(([x, y], i) => (i ? p.lineTo(x, y) : p.moveTo(x, y))); p.closePath(); }), style),
    line: (x1, y1, x2, y2, style) => paint(path((p) => { p.moveTo(x1, y1); p.lineTo(x2, y2); }), style),
    text(text, x, y, style) {
      const { fill, anchor = "start", angle = 0, opacity = 1 } = style;
      context.save();
      context.translate(x, y);
      if (angle) context.rotate((angle * Math.PI) / 180);
      context.globalAlpha = opacity;
      context.font = font(style);
      context.fillStyle = fill;
      context.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
      context.fillText(text, 0, 0);
      context.restore();
    },
    within(x, y, w, h, draw) {
      context.save();
      context.beginPath();
      context.rect(x, y, w, h);
      context.clip();
      draw();
      context.restore();
    },
  };
}

// `root` is an svg element; everything lands in it.
function svgPainter(root) {
  let into = root;
  let clips = 0;
  const round = (number) => Math.round(100 * number) / 100;
  const add = (name, attributes, { fill, stroke, width = 1, opacity = 1, dash }, ...children) => into.append(svg(name, {
    ...attributes, fill: fill ?? "none", stroke: stroke ?? null, "stroke-width": stroke ? width : null,
    opacity: opacity < 1 ? round(opacity) : null, "stroke-dasharray": dash?.join(" ") ?? null,
  }, ...children));
  return {
    curve: (x1, y1, x2, y2, style) => add("path", { d: `M${round(x1)} ${round(y1)}C${bends(x1, y1, x2, y2).map(round).join(" ")} ${round(x2)} ${round(y2)}` }, style),
    circle: (x, y, r, style) => add("circle", { cx: round(x), cy: round(y), r: round(r) }, style),
    box: (x, y, w, h, r, style) => add("rect", { x: round(x), y: round(y), width: round(w), height: round(h), rx: r }, style),
    shape: (points, style) => add("polygon", { points: points.map((point) => point.map(round).join(",")).join(" ") }, style),
    line: (x1, y1, x2, y2, style) => add("line", { x1: round(x1), y1: round(y1), x2: round(x2), y2: round(y2) }, style),
    text(text, x, y, style) {
      const { size = 12, weight = 400, mono = false, anchor = "start", angle = 0 } = style;
      const turned = angle ? `translate(${round(x)} ${round(y)}) rotate(${angle})` : null;
      add("text", {
        x: turned ? 0 : round(x), y: turned ? 0 : round(y), transform: turned, "font-size": size,
        "font-weight": weight, "font-family": mono ? MONO : SANS, "text-anchor": anchor, "xml:space": "preserve",
      }, style, text);
    },
    within(x, y, w, h, draw) {
      const id = `clip${(clips += 1)}`;
      const group = svg("g", { "clip-path": `url(#${id})` });
      into.append(svg("clipPath", { id }, svg("rect", { x, y, width: w, height: h })), group);
      const before = into;
      into = group;
      draw();
      into = before;
    },
  };
}

// The control points of an upright curve.
function bends(x1, y1, x2, y2) {
  const middle = (y1 + y2) / 2;
  return [x1, middle, x2, middle];
}

// Makes a canvas as large as its element, sharp on any screen, and has it painted.
function painted(canvas, draw) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const sharp = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * sharp), Math.round(height * sharp)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const context = canvas.getContext("2d");
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.clearRect(0, 0, width, height);
  draw(canvasPainter(context), width, height);
}
