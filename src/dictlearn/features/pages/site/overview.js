// The overview of all features, shown until one is opened.
"use strict";

function overviewView() {
  const { info } = data;
  const count = { reliable: 0, unreliable: 0, none: 0, dead: 0 };
  const kinds = Object.keys(count);
  for (let row = 0; row < data.rows; row++) count[kinds.find((kind) => SHOWN[kind].has(row))] += 1;
  const counted = (kind, title, said) => figure(
    el("a", { href: `#/about?show=${kind}` }, title), whole(count[kind]), `${(100 * count[kind] / (data.rows || 1)).toFixed(1)}% ${said}`);
  return [
    el("nav", { class: "narrow" }, el("a", { class: "back", href: address(null) }, "All features")),
    el("header", {}, el("h1", {}, `Features of ${info.title}`), el("p", { class: "lede" }, lede(info)),
      info.report ? el("p", { class: "lede" }, reportLink("The run's report"), " has its figures.") : null),
    el("dl", { class: "key" },
      counted("reliable", "Described", "with a description to go by"),
      counted("unreliable", "Unreliable", "described, but not to be trusted"),
      counted("none", "No description", "fire, and nothing is said of them"),
      counted("dead", "Dead", "never fired")),
    section("Density", "Features by the share of tokens on which they fire.", densityChart()),
    count.reliable + count.unreliable ? section("Scores", scoreNote(info), scoreChart()) : null,
    section("Keys", null, el("dl", { class: "keys" },
      keyHelp("/", "search"), keyHelp("j k", "next and previous feature of the list"),
      keyHelp("Enter", "opens the first one found"), keyHelp("Esc", "leaves the search, then the feature"))),
  ].filter((part) => part !== null);
}

function lede(info) {
  return `${info.what}: ${whole(data.rows)} features, seen on ${whole(info.tokens)} tokens of ${whole(info.documents)} held-out ${info.documents === 1 ? "document" : "documents"}.`;
}

// The link to the run's report, if the pages are in its folder.
function reportLink(label = "Report") {
  return data.info.report ? el("a", { class: "report", href: data.info.report }, label) : null;
}

const BINS_PER_DECADE = 6;

function densityChart() {
  const live = data.density.filter((density) => density > 0);
  const lowest = Math.floor(Math.log10(live.reduce((a, b) => Math.min(a, b), 0.1)));
  const bars = new Array(-lowest * BINS_PER_DECADE).fill(0);
  for (const density of live) {
    const place = Math.floor((Math.log10(density) - lowest) * BINS_PER_DECADE);
    bars[Math.min(bars.length - 1, place)] += 1;
  }
  const edge = (i) => 10 ** (lowest + i / BINS_PER_DECADE);
  return barChart({
    bars, xLabel: "share of tokens",
    ticks: Array.from({ length: 1 - lowest }, (_, i) => [i * BINS_PER_DECADE, power(lowest + i)]),
    label: (i) => `${share(edge(i))} to ${share(edge(i + 1))}: ${whole(bars[i])} features`,
    says: `Histogram of ${whole(live.length)} live features by density`,
  });
}

const SCORE_BINS = 25;

function scoreChart() {
  const scores = data.score.filter((score) => !isNaN(score));
  const bars = new Array(SCORE_BINS).fill(0);
  for (const score of scores) bars[Math.min(SCORE_BINS - 1, Math.max(0, Math.floor(score * SCORE_BINS)))] += 1;
  return barChart({
    bars, xLabel: data.info.score,
    ticks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => [value * SCORE_BINS, value.toFixed(1)]),
    label: (i) => `${(i / SCORE_BINS).toFixed(2)} to ${((i + 1) / SCORE_BINS).toFixed(2)}: ${whole(bars[i])} descriptions`,
    says: `Histogram of the scores of ${whole(scores.length)} descriptions`,
    marks: data.info.baselines.map(([name, mean]) => ({ place: Math.min(1, Math.max(0, mean)) * SCORE_BINS, label: words(name) })),
  });
}

function scoreNote({ score, baselines }) {
  const beside = baselines.map(([name, value]) => `${words(name)} ${value.toFixed(2)}`);
  const means = beside.length ? ` Means of the baselines: ${beside.join(", ")}.` : "";
  return `Descriptions by ${score}, on text that their author never saw.${means}`;
}
