// A feature's description, with its scores.
"use strict";

function descriptionOf(explanation) {
  if (!explanation || !explanation.text) {
    const says = explanation ? `No good description was found by ${authorOf(explanation)}.` : "No description.";
    return el("section", { class: "description none" }, el("p", { class: "text" }, says));
  }
  const { text, reliable, n_examples, scores, baselines, failing } = explanation;
  return el("section", { class: reliable ? "description" : "description doubtful" },
    reliable ? null : el("p", { class: "warning" }, el("b", {}, "Unreliable description. "),
      "Its score on text that its author never saw is too low to go by."),
    el("p", { class: "text" }, prose(text)),
    el("p", { class: "note" }, `by ${authorOf(explanation)}${n_examples ? `, scored ${judged(explanation)}` : ""}`),
    scoresOf(scores, baselines, reliable),
    failing.length ? failures(explanation) : null);
}

// The basis of the scores: a rule is tested on every token, a model answers for some examples.
function judged({ model, n_examples: n }) {
  if (model) return `by ${whole(n)} ${n === 1 ? "answer about an example" : "answers about examples"} of other documents`;
  return `on other documents, where the feature fires ${whole(n)} ${n === 1 ? "time" : "times"}`;
}

function authorOf({ explainer, model }) {
  return model ? `${explainer}, ${model}` : explainer;
}

// The first score as a bar over those of its baselines; the others in a line.
function scoresOf(scores, baselines, reliable) {
  const [main, ...others] = scores;
  if (!main) return null;
  const kind = reliable ? "good" : "poor";
  return el("div", { class: "scores" },
    el("ul", { class: "bars" },
      barLine(el("span", { class: "name own" }, words(main[0])), main[1], 1, main[1].toFixed(2), kind),
      baselines.map(([name, value]) => barLine(el("span", { class: "name" }, words(name)), value, 1, value.toFixed(2), "base"))),
    others.length ? el("p", { class: "note" }, others.map(([name, value]) => `${words(name)} ${value.toFixed(2)}`).join(" · ")) : null);
}

// The token in question stands between << and >>.
function failures({ failing, n_failing, reliable }) {
  const quote = (text) => text.split(/(<<[^]*?>>)/).filter((part) => part !== "").map((part) => (/^<<[^]*>>$/.test(part)
    ? el("mark", { class: "m5" }, flat(part.slice(2, -2), true))
    : flat(part, false)));
  const lines = failing.map(({ text, fired, predicted }) => el("li", {},
    el("span", { class: "verdict" }, fired && !predicted ? "fires, not predicted" : "predicted, does not fire"),
    el("span", { class: "quote" }, quote(text).flat())));
  const shown = n_failing > failing.length ? `${failing.length} of ${n_failing}` : `${n_failing}`;
  return el("details", { class: "failing", open: !reliable && "" },
    el("summary", {}, `${shown} ${n_failing === 1 ? "example" : "examples"} where it fails`), el("ul", {}, lines));
}
