// Small charts, drawn as SVG in the page's colours, each with a description in words.
"use strict";

const CHART = { widest: 640, height: 200, left: 40, right: 22, top: 22, bottom: 40 };

const MARK_LINE = 15; // px

// Bars over [0, bars.length]; `ticks` are [place, label] on that scale, `label(i)` describes a bar.
// With `log`, heights are logarithmic from 1: activations have long tails. `marks` are {place, label}.
function barChart({ bars, ticks, xLabel, label, says, log = false, marks = [] }) {
  const { widest, left, right, bottom } = CHART;
  const top = CHART.top + MARK_LINE * Math.max(0, marks.length - 1); // each label on a line of its own
  const height = CHART.height + top - CHART.top;
  const width = Math.min(widest, Math.max(280, byId("view").clientWidth - 32)); // unscaled where it fits
  const most = Math.max(1, ...bars);
  const scale = log ? (v) => (v > 0 ? Math.log10(2 * v) / Math.log10(2 * most) : 0) : (v) => v / most;
  const x = (place) => left + (place / bars.length) * (width - left - right);
  const y = (value) => height - bottom - scale(value) * (height - top - bottom);
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": says });
  for (const value of log ? decades(most) : evenly(most)) {
    chart.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, compact(value)));
  }
  bars.forEach((value, i) => {
    const [from, to] = [x(i), x(i + 1)];
    const gap = Math.min(2, 0.15 * (to - from));
    chart.append(svg("rect", { class: "bar", x: from, width: to - from - gap, y: y(value), height: y(0) - y(value) }));
    // The whole column can be hovered, as the bar may be a pixel high.
    chart.append(svg("rect", { class: "column", x: from, width: to - from, y: top, height: height - top - bottom, "data-tip": label(i) }));
  });
  chart.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(0), y2: y(0) }));
  for (const [place, words] of ticks) {
    chart.append(svg("text", { x: x(place), y: height - bottom + 17, "text-anchor": "middle" }, words));
  }
  marks.forEach(({ place, label }, i) => {
    const foot = top - 7 - MARK_LINE * i;
    chart.append(
      svg("line", { class: "mark", x1: x(place), x2: x(place), y1: foot + 3, y2: y(0) }),
      svg("text", { class: "marked", x: x(place), y: foot, "text-anchor": "middle" }, label));
  });
  chart.append(
    svg("text", { class: "label", x: width - right, y: height - 6, "text-anchor": "end" }, xLabel));
  return chart;
}

function decades(most) {
  return Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, i) => 10 ** i);
}

function evenly(most) {
  const rough = most / 3;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].find((n) => n * unit >= rough) * unit);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}

function compact(value) {
  if (value >= 1e6) return `${short(value / 1e6)}M`;
  return value >= 1000 ? `${short(value / 1000)}k` : String(value);
}

// A line of a bar list: name, a bar from 0 to `most`, value. Negative bars have another colour.
function barLine(what, value, most, shown, kind = "") {
  const bar = el("span", { class: `bar ${value < 0 ? "down" : ""} ${kind}` });
  bar.style.width = `${(100 * Math.min(1, Math.abs(value) / (most || 1))).toFixed(1)}%`;
  return el("li", {}, what, el("span", { class: "track" }, bar), el("span", { class: "value" }, shown));
}
