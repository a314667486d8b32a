// The page of one feature.
"use strict";

const SHOWN_TOP = 12, SHOWN_DRAWN = 4; // examples shown at first

function featureView(feature, href) {
  const { row } = feature;
  return [
    featureNav(row, href),
    el("header", {},
      el("h1", {}, nameOf(row),
        feature.dead ? el("span", { class: "badge" }, "dead") : null),
      data.info.paths[sourceOf(row)] === data.info.sites[sourceOf(row)]
        ? null // the name shows it already
        : el("p", { class: "site" }, data.info.paths[sourceOf(row)])),
    descriptionOf(feature.explanation),
    feature.dead
      ? el("p", { class: "note" }, `It never fired in ${whole(data.info.tokens)} tokens.`)
      : el("dl", { class: "key" },
        figure("Density", share(feature.density), `1 token in ${whole(Math.round(1 / feature.density))}`),
        figure("Firings", whole(feature.count), `of ${whole(data.info.tokens)} tokens`),
        figure("Maximum", alike(feature.maximum)(feature.maximum), `mean ${alike(feature.maximum)(feature.mean)}`),
        feature.output === null ? null : figure("Output score", feature.output.toFixed(3), "gain of its own tokens at its maximum")),
    feature.top.length ? section("Strongest activations", null, examplesTable(feature.top, feature.maximum, SHOWN_TOP)) : null,
    feature.transform ? transformOf(feature.transform) : null,
    normsOf(feature),
    writesOf(feature),
    el("div", { class: "pair" },
      related("Nearest decoders", "Cosine of decoder vectors; a full bar is 1.", feature.neighbours, href),
      related("Fires together with", "Tokens on which both fire, over those on which either does; a full bar is all of them.", feature.cofiring, href)),
    feature.dead ? null : section("Activations", "Counts of its firings, on a logarithmic scale.", activationChart(feature)),
    intervalsOf(feature),
  ].filter((part) => part !== null);
}

function featureNav(row, href) {
  const place = list.places.get(row);
  const step = (label, to) => (to === null
    ? el("span", { class: "step", "aria-disabled": "true" }, label)
    : el("a", { class: "step", href: href(to) }, label));
  const inside = place !== undefined;
  return el("nav", { "aria-label": "Features" },
    el("a", { class: "back", href: href(null) }, "All features"),
    reportLink(),
    el("span", { class: "place" }, inside ? `${whole(place + 1)} of ${whole(list.rows.length)}` : ""),
    step("Previous", inside ? beside(row, -1) : null),
    step("Next", inside ? beside(row, 1) : null));
}

// Examples drawn from intervals of its activations, the strongest interval first.
function intervalsOf({ intervals, maximum }) {
  const drawn = intervals.map((examples, q) => ({ examples, q })).filter(({ examples }) => examples.length).reverse();
  if (!drawn.length) return null;
  return section("From strong to weak", "Drawn at random from intervals of its other activations, each of equally many.",
    drawn.map(({ examples, q }) => {
      const strongest = examples.toSorted((a, b) => peakOf(b) - peakOf(a));
      const range = [strongest.at(-1), strongest[0]].map(peakOf).map(alike(maximum)).join(" to ");
      return el("div", {},
        el("h3", {}, `Interval ${q + 1} of ${intervals.length}: ${range}`),
        examplesTable(strongest, maximum, SHOWN_DRAWN));
    }));
}

function activationChart({ histogram, maximum, count, quantiles }) {
  const width = maximum / histogram.length;
  const shown = alike(maximum);
  const range = (i) => `${shown(i * width)} to ${shown((i + 1) * width)}`;
  const middle = data.info.quantile_levels.indexOf(0.5);
  const ticks = [0, 1, 2, 3, 4].map((i) => [(i * histogram.length) / 4, shown((i * maximum) / 4)]);
  const median = middle >= 0 && quantiles.length ? quantiles[middle] : null;
  return barChart({
    bars: histogram, ticks, xLabel: "activation", log: true,
    label: (i) => `${range(i)}: ${whole(histogram[i])} firings`,
    says: `Histogram of ${whole(count)} activations up to ${shown(maximum)}`,
    marks: median === null ? [] : [{ place: median / width, label: `median ${shown(median)}` }],
  });
}

// How strongly it writes to each of several targets. `norms` are [target, standard deviations].
function normsOf({ norms }) {
  if (norms.length < 2) return null;
  const most = Math.max(...norms.map(([, value]) => value));
  const sum = norms.reduce((total, [, value]) => total + value, 0) || 1;
  return section("Decoder norms",
    "What it writes to each target where it fires, at its mean activation, in the target's standard deviations; and the share of their sum.",
    el("ul", { class: "bars norms" }, norms.map(([target, value]) => barLine(
      el("span", { class: "name own" }, target), value, most, `${alike(most)(value)} · ${Math.round((100 * value) / sum)}%`))));
}

// Tokens that it raises and lowers, at each target. `writes` is [[target, promoted, suppressed]].
function writesOf({ writes }) {
  if (!writes.length) return null;
  const note = "Effect on logits of one unit of activation, through the unembedding.";
  const shown = el("div", { class: "pair" });
  const show = ([, promoted, suppressed]) => {
    const most = Math.max(...[...promoted, ...suppressed].map(([, value]) => Math.abs(value)), 0);
    shown.replaceChildren(tokenBars("Promoted", promoted, most), tokenBars("Suppressed", suppressed, most));
  };
  show(writes[0]);
  if (writes.length === 1) return section("Tokens", note, shown);
  return section("Tokens by target", note, targetTable(writes, show), shown);
}

// One row a target; choosing one shows all of its tokens below.
function targetTable(writes, show) {
  const chips = (tokens) => el("td", {}, tokens.slice(0, 5).map(([text]) => token(text)));
  const rows = writes.map((entry, i) => {
    const button = el("button", { type: "button", "aria-pressed": i === 0 ? "true" : "false" }, entry[0]);
    button.addEventListener("click", () => {
      for (const row of rows) row.querySelector("button").setAttribute("aria-pressed", row.contains(button) ? "true" : "false");
      show(entry);
    });
    return el("tr", {}, el("th", { scope: "row" }, button), chips(entry[1]), chips(entry[2]));
  });
  return el("div", { class: "scroll" }, el("table", { class: "targets" },
    el("thead", {}, el("tr", {}, ["target", "promoted", "suppressed"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows)));
}

// `links` are [row, value], the values at most 1: bars of one page can be compared with those of another.
function related(title, note, links, href) {
  const line = ([row, value]) => barLine(
    el("a", { href: href(row), "data-row": row }, el("span", { class: "name" }, nameOf(row)), summaryOf(row)), value, 1, value.toFixed(2));
  return section(title, note, links.length
    ? el("ul", { class: "bars links" }, links.map(line))
    : el("p", { class: "note" }, "None."));
}

// What a transform of a MOLT reads and writes along its leading singular directions.
function transformOf({ rank, directions }) {
  const chips = (tokens) => tokens.slice(0, 6).map(([text]) => token(text));
  const cell = (plus, minus) => el("td", {},
    el("div", {}, el("span", { class: "sign" }, "+"), chips(plus)), el("div", {}, el("span", { class: "sign" }, "−"), chips(minus)));
  const shown = alike(Math.max(...directions.map(([strength]) => strength)));
  const rows = directions.map(([strength, reads, opposite, promotes, suppresses], i) => el("tr", {},
    el("th", { scope: "row" }, String(i + 1)), el("td", { class: "value" }, shown(strength)), cell(reads, opposite), cell(promotes, suppresses)));
  return section(`Transform of rank ${rank}`,
    "Its leading singular directions: tokens whose embeddings align most and least with what one reads, and tokens raised and lowered by what it then writes.",
    el("div", { class: "scroll" }, el("table", { class: "directions" },
      el("thead", {}, el("tr", {}, ["", "strength", "reads", "writes"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows))));
}
