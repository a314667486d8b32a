"""What `dictlearn explain` makes of pico's SAE: the figures, and 20 features drawn at random.

    python train.py name=demo
    dictlearn explain run=runs/demo
    python scripts/describe_pico.py runs/demo

Writes benchmarks/results/descriptions.json and the table in docs/explain.md.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.evals.record import versions
from dictlearn.explain.contexts import Context, Contexts
from dictlearn.explain.sample import take_sample
from dictlearn.explain.wording import in_context
from dictlearn.lm.load import load_model
from dictlearn.sources.tokens import stdlib_windows
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.text import token_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/descriptions.json"
PAGE = ROOT / "docs/explain.md"
BEGIN, END = "<!-- table: scripts/describe_pico.py -->", "<!-- end of table -->"
SHOWN, TOKENS, SEED = 20, 65_536, 0


def main(run: Path) -> None:
    explanations = read_explanations(run / "features")
    summary = json.loads((run / "features/explanations.json").read_text())
    keys = sorted(explanations)
    drawn = sorted(np.random.default_rng(SEED).permutation(len(keys))[:SHOWN].tolist())
    chosen = [explanations[keys[i]] for i in drawn]
    lm, dictionary = load_model("pico"), load_dictionary(run)
    sample, firings = take_sample(lm, {"own": dictionary}, stdlib_windows(lm, "eval"), TOKENS)
    assert lm.tokenizer is not None
    pieces = token_text(lm.tokenizer, range(lm.info.vocab_size))
    rows = []
    for one in chosen:
        feature = (one.source, one.feature)
        contexts = Contexts(sample, firings["own"], feature, pieces, "score", seed=SEED)
        drawn_contexts = contexts.strongest(1) + contexts.by_interval(5)[2:3]
        rows.append(row(one, drawn_contexts))
    record = {
        "summary": summary,
        "shown": [e.feature for e in chosen],
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    titles = ("feature", "description", "balanced accuracy", "precision", "recall", "examples")
    head = f"| {' | '.join(titles)} |"
    lines = [BEGIN, "", head, "|---|---|---|---|---|---|", *rows, "", END]
    PAGE.write_text(before + "\n".join(lines) + rest.partition(END)[2])


def row(one: Explanation, contexts: list[Context]) -> str:
    marked = "" if one.reliable else "*unreliable:* "
    text = one.text or "no description found"
    figures = [f"{one.scores[n]:.2f}" for n in ("balanced_accuracy", "precision", "recall")]
    examples = "<br>".join(shown(context) for context in contexts)
    cells = [str(one.feature), escaped(marked + text), *figures, examples]
    return f"| {' | '.join(cells)} |"


def shown(context: Context) -> str:
    text = in_context(context.pieces, context.peak, before=10, after=4)
    text = text.replace("\n", "\N{RETURN SYMBOL}").replace("`", "'")
    return f"`` {escaped(text)} ``"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
