"""A run in one line, and whether it has enough text."""

from __future__ import annotations

from omegaconf import DictConfig

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.sources.named import text_of
from dictlearn.types import ModelInfo, TextWindows
from dictlearn.verbs import build

# Tokens per parameter of published dictionaries, from the sizes that they state.
# One layer: SAEBench's of Gemma-2-2B (65,536 features of width 2,304, 500M tokens: 1.7) to sparsify's
# of SmolLM2-1.7B (65,536 of 2,048, 10B: 37). Cross-layer: BluelightAI's of Qwen3-0.6B (20,480 a layer,
# 750M: 0.08) to one of Pythia-160M (6,144 a layer, 800M: 1.9).
PUBLISHED = (1.7, 37.0)
PUBLISHED_CROSS_LAYER = (0.08, 1.9)
FRACTIONS = {
    "a third": 3,
    "a tenth": 10,
    "a thirtieth": 30,
    "a hundredth": 100,
    "a thousandth": 1000,
}


def first_line(
    cfg: DictConfig, dictionary: Dictionary, info: ModelInfo, text: build.Text | None
) -> str:
    """Run folder, kind, features, sites, model, tokens, data and device."""
    shape = dictionary.shape
    reads, writes = listed(shape.sources), listed(shape.targets)
    where = reads if reads == writes else f"{reads} to {writes}"
    features = f"{shape.n_features:,} features" + (
        " per source" if dictionary.code_sources > 1 else ""
    )
    tokens = f"{build.run_tokens(cfg):,} tokens"
    if text is not None:
        tokens = tokens_of(build.run_tokens(cfg), text.train, text_of(cfg.data))
    device = "the CPU" if build.accelerator(cfg) == "cpu" else "a GPU"
    return f"{cfg.run_dir}: {shape.kind}, {features}, {where} of {info.name}, {tokens}, on {device}"


def tokens_of(wanted: int, windows: TextWindows, name: str) -> str:
    """How many tokens of which text a run reads, and how often if there are fewer than it wants."""
    whole = len(windows) * windows.context
    there = getattr(windows, "n_kept", whole)  # conversations keep few of theirs
    times = wanted / there
    if times < 1.05:
        return f"{wanted:,} tokens of {name}"
    return f"{there:,} tokens of {name}, read {times:.{0 if times >= 9.95 else 1}f} times"


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"


def beside_published(tokens: float, parameters: float, shape: Shape) -> tuple[str, bool]:
    """Compares tokens per parameter with published runs; also returns whether they are far fewer."""
    least, most = PUBLISHED_CROSS_LAYER if shape.link.cross_layer else PUBLISHED
    ratio = tokens / parameters
    if ratio >= least * 0.6:
        return f"published runs have {least:g} to {most:g}", False
    published = f"published runs have ({least:g} to {most:g})"
    for words, factor in FRACTIONS.items():
        if least / ratio < factor * 1.8:
            return f"{words} of what {published}", factor >= 10
    return f"less than a thousandth of what {published}", True
