"""What `dictlearn explain` makes of pico's SAE: the figures, and 20 features drawn at random.

    python train.py name=demo
    dictlearn explain run=runs/demo
    python scripts/describe_pico.py runs/demo

Appends to benchmarks/results/descriptions.json, of which `make docs` makes the tables of docs/explain.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.explain.contexts import Context, Contexts
from dictlearn.explain.sample import take_sample
from dictlearn.explain.wording import in_context
from dictlearn.lm.load import load_model
from dictlearn.sources.tokens import stdlib_windows
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.text import token_text

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

PACKAGES = ("torch", "transformers", "dictlearn-lm")
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
    record = {"summary": summary, "versions": results.versions(PACKAGES), "rows": rows}
    print(f"appended to {results.append('descriptions', record)}")


def row(one: Explanation, contexts: list[Context]) -> list[str]:
    """The cells of a feature's line."""
    marked = "" if one.reliable else "*unreliable:* "
    text = one.text or "no description found"
    figures = [f"{one.scores[n]:.2f}" for n in ("balanced_accuracy", "precision", "recall")]
    examples = "<br>".join(shown(context) for context in contexts)
    return [str(one.feature), escaped(marked + text), *figures, examples]


def shown(context: Context) -> str:
    text = in_context(context.pieces, context.peak, before=10, after=4)
    text = text.replace("\n", "\N{RETURN SYMBOL}").replace("`", "'")
    return f"`` {escaped(text)} ``"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
