"""The convention that a dictionary is read by, and another one if it fits the activations better.

Tools differ in what they subtract from the input, in its scale, in which features fire, and in the site
that they mean, and a file often doesn't say. Read by the wrong one, a dictionary reconstructs worse than
the mean: its FVU is above 1. Then the other readings are measured on a sample of the same text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals.observe import before_padding, window_batches
from dictlearn.evals.reconstruction import ReconstructionSums
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.other_names import ADDED, module_output
from dictlearn.lm.sites import STANDARDISED, resolve
from dictlearn.sparsity.relu import ReLU
from dictlearn.sparsity.topk import TopK
from dictlearn.types import TextWindows

MOST_TOKENS, LEAST_TOKENS = 4096, 256
ROOM = 1 << 27  # numbers in the sample
OTHER_END = {"resid_post": "resid_pre", "resid_pre": "resid_post"}
SMALLEST = 1e-8  # of a decoder vector's norm: below, it counts as this

Change = Callable[[Dictionary], Dictionary]


@dataclass(frozen=True, eq=False)
class Reading:
    """Another way to read the same weights, and how well it does."""

    words: str  # how it is read, "with ..."
    fvu: float
    l0: float  # of all sources together


# --- the one that is applied ----------------------------------------------------------------------


def described(dictionary: Dictionary) -> str:
    """One sentence: what is subtracted, the scale, what fires, and special tokens."""
    origin = dictionary.provenance
    centre = (
        "b_dec is subtracted from the input"
        if dictionary.shape.centre
        else "nothing is subtracted from the input"
    )
    scale_in, scale_out = origin.get("input_scale", 1.0), origin.get("output_scale", 1.0)
    standardised = any(site.endswith(STANDARDISED) for site in dictionary.sources)
    scale = "each token is standardised" if standardised else "no scale"
    if (scale_in, scale_out) != (1.0, 1.0):
        scale = (
            f"the input is multiplied by {scale_in:.4g} and the output divided by {scale_out:.4g}"
        )
    fires = _fires(dictionary)
    return f"Convention: {centre}; {scale}; {fires}; special tokens are left out of FVU and L0."


def _fires(dictionary: Dictionary) -> str:
    options: Mapping[str, Any] = dictionary.sparsity.options()
    form = dictionary.sparsity.as_jumprelu(dictionary.encoder.b_enc)
    if dictionary.sparsity.name == "topk":
        return f"the {options['k']} largest positive values of a token fire"
    if form is None:
        return f"features fire by {dictionary.sparsity.name}"
    theta_SF = form.threshold_SF
    if not bool(theta_SF.any()):
        return "every positive value fires"
    return f"a value fires above its feature's threshold (median {float(theta_SF.median()):.4g})"


# --- the others -----------------------------------------------------------------------------------


@torch.no_grad()
def others(dictionary: Dictionary, lm: LanguageModel, windows: TextWindows) -> list[Reading]:
    """Every other reading, the best first; two changes at once where one does not bring FVU below 1.

    A code of nearly as many numbers as the activations is no explanation of them, however low its FVU.
    """
    places = _places(dictionary, lm)
    names = {name for sites in places.values() for name in (*sites[0], *sites[1])}
    values = _sample(dictionary, lm, windows, sorted(names))
    own = dictionary.sources, dictionary.targets
    x_NSD, y_NTD = _stacked(values, own[0]), _stacked(values, own[1])
    changes = _changes(dictionary, x_NSD, y_NTD)
    found = [_measured(words, change(dictionary), x_NSD, y_NTD) for _, words, change in changes]
    for words, (sources, targets) in places.items():
        if words:
            x, y = _stacked(values, sources), _stacked(values, targets)
            found.append(_measured(words, dictionary, x, y))
    if not found or min(one.fvu for one in found) >= 1:
        for (of, words, change), (also_of, also, second) in combinations(changes, 2):
            if of != also_of:
                both = second(change(dictionary))
                found.append(_measured(f"{words} and {also}", both, x_NSD, y_NTD))
    dense = dictionary.width * dictionary.n_targets / 2
    return sorted(found, key=lambda one: (one.fvu >= 1, one.l0 >= dense, one.fvu))


def verdict(fvu: float, readings: Sequence[Reading]) -> str:
    """One sentence for a dictionary whose FVU is above 1."""
    start = f"FVU {fvu:.3g} is above 1: it reconstructs worse than the mean."
    if not readings:
        return f"{start} No other convention could be tried."
    best = readings[0]
    if best.fvu < 1:
        return (
            f"{start} {best.words[0].upper()}{best.words[1:]} it would be {best.fvu:.3g} (L0 "
            f"{best.l0:.1f}), of {len(readings)} other conventions the best: the files may mean that."
        )
    return (
        f"{start} None of {len(readings)} other conventions brings it below 1; the best, {best.words}, "
        f"gives {best.fvu:.3g}. Is this the model, and the site, that it was trained on?"
    )


def _changes(dictionary: Dictionary, x_NSD: Tensor, y_NTD: Tensor) -> list[tuple[str, str, Change]]:
    """(aspect, words, what it makes of the dictionary)."""
    changes: list[tuple[str, str, Change]] = []
    if dictionary.sources == dictionary.targets:
        centre = dictionary.shape.centre
        words = "with nothing" if centre else "with b_dec"
        changes.append(("centre", f"{words} subtracted from the input", _recentred))
    changes += [("fires", words, change) for words, change in _firing(dictionary)]
    changes += [("scale", words, change) for words, change in _scales(dictionary, x_NSD, y_NTD)]
    if dictionary.W_skip is not None:
        changes.append(("skip", "with the skip transposed", _transposed))
    return changes


def _recentred(dictionary: Dictionary) -> Dictionary:
    other = copy.deepcopy(dictionary)
    other.shape = replace(other.shape, centre=not other.shape.centre)
    return other


def _transposed(dictionary: Dictionary) -> Dictionary:
    other = copy.deepcopy(dictionary)
    assert other.W_skip is not None
    other.W_skip.data = other.W_skip.data.mT.contiguous()
    return other


def _firing(dictionary: Dictionary) -> list[tuple[str, Change]]:
    """Other rules of which features fire."""
    name, found = dictionary.sparsity.name, []
    if name in ("topk", "jumprelu"):
        found.append(("with every positive value kept", _kept))
    if name == "topk" and dictionary.decoder.writes_directions:
        found.append(("with the largest chosen by value times decoder norm", _by_what_is_written))
    if name == "jumprelu" and dictionary.decoder.writes_directions:
        found.append(("with thresholds on the value times the decoder norm", _weighed))
    if name in ("relu", "jumprelu") and dictionary.shape.k > 1:
        k = round(dictionary.shape.k)
        found.append((f"with the {k} largest values of a token kept", lambda d: _largest(d, k)))
    return found


def _kept(dictionary: Dictionary) -> Dictionary:
    other = copy.deepcopy(dictionary)
    other.sparsity = ReLU(dictionary.code_sources, dictionary.n_features)
    return other.eval()


def _largest(dictionary: Dictionary, k: int) -> Dictionary:
    other = copy.deepcopy(dictionary)
    other.sparsity = TopK(dictionary.code_sources, dictionary.n_features, k)
    return other.eval()


def _by_what_is_written(dictionary: Dictionary) -> Dictionary:
    other = copy.deepcopy(dictionary)
    norms_SF = dictionary.decoder.norms().clamp_min(SMALLEST)
    other.encoder.W_enc.mul_(norms_SF[..., None])
    other.encoder.b_enc.mul_(norms_SF)
    other.decoder.normalise()
    return other


def _weighed(dictionary: Dictionary) -> Dictionary:
    other = copy.deepcopy(dictionary)
    norms_SF = dictionary.decoder.norms().clamp_min(SMALLEST)
    other.sparsity = dictionary.sparsity.rescaled(1 / norms_SF)
    return other.eval()


def _scales(dictionary: Dictionary, x_NSD: Tensor, y_NTD: Tensor) -> list[tuple[str, Change]]:
    """Scales that tools train in, and the weights without the scale that a reader put into them."""
    root = math.sqrt(dictionary.width)
    found: list[tuple[str, Change]] = []
    for words, mean in (
        (f"with activations scaled to a mean norm of sqrt({dictionary.width})", _mean_norm),
        ("with activations scaled to a mean square norm of 1", _root_mean_square),
    ):
        goal = root if mean is _mean_norm else 1.0
        scale_S, scale_T = goal / mean(x_NSD), goal / mean(y_NTD)
        found.append((words, _scaled(scale_S, scale_T)))
    origin = dictionary.provenance
    if "input_scale" in origin:
        scale_S = x_NSD.new_full((dictionary.n_sources,), 1 / origin["input_scale"])
        scale_T = x_NSD.new_full((dictionary.n_targets,), 1 / origin["output_scale"])
        found.append(("without that scale", _scaled(scale_S, scale_T)))
    return found


def _scaled(scale_S: Tensor, scale_T: Tensor) -> Change:
    return lambda dictionary: dictionary.folded(scale_S.clone(), scale_T.clone())


def _mean_norm(x_NSD: Tensor) -> Tensor:
    return x_NSD.norm(dim=-1).mean(0)


def _root_mean_square(x_NSD: Tensor) -> Tensor:
    return x_NSD.square().sum(-1).mean(0).sqrt()


def _places(
    dictionary: Dictionary, lm: LanguageModel
) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """words -> (sources, targets): its own without words, and those that others call by its name."""
    own = dictionary.sources, dictionary.targets
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {"": own}
    for words, renamed in (
        ("read and written at the block's other end", _other_end),
        ("read before the gain of the norm", lambda s: s.replace("mlp_in.", "mlp_norm.")),
        ("read after the gain of the norm", lambda s: s.replace("mlp_norm.", "mlp_in.")),
        ("with each token standardised", _standardised),
        ("with tokens not standardised", lambda s: s.removesuffix(STANDARDISED)),
        ("written before the norm behind the module", lambda s: _before_norm(s, lm)),
    ):
        sites = tuple(map(renamed, own[0])), tuple(map(renamed, own[1]))
        if sites != own and all(_there(lm, site) for side in sites for site in side):
            found[words] = sites
    return found


def _other_end(site: str) -> str:
    """resid_post.L -> resid_pre.L and back: hidden states are counted both ways."""
    kind, dot, rest = site.partition(".")
    return OTHER_END.get(kind, kind) + dot + rest


def _standardised(site: str) -> str:
    return site if site.endswith(STANDARDISED) else site + STANDARDISED


def _before_norm(site: str, lm: LanguageModel) -> str:
    """The module's own output where a family has a norm behind it."""
    kind, _, layer = site.partition(".")
    added = kind in ADDED and layer.isdigit() and _there(lm, site)
    return module_output(lm, kind, layer) if added else site


def _there(lm: LanguageModel, site: str) -> bool:
    try:
        resolve(lm.at(site)[0].model, lm.at(site)[1], lm.info)
    except ValueError:
        return False
    return True


# --- measuring ------------------------------------------------------------------------------------


def _sample(
    dictionary: Dictionary, lm: LanguageModel, windows: TextWindows, names: Sequence[str]
) -> dict[str, Tensor]:
    """Activations [N, D] of each site, without special tokens."""
    tokens = max(LEAST_TOKENS, min(MOST_TOKENS, ROOM // (len(names) * dictionary.width)))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for indices in window_batches(windows, tokens, 8):
        tokens_BP = windows.window_batch(indices).to(lm.device)
        keep_BP = windows.kept(indices).to(lm.device)
        values = capture(lm, tokens_BP, tuple(names))
        for name in names:
            parts[name].append(values[name][keep_BP & before_padding(keep_BP)].float())
    return {name: torch.cat(found) for name, found in parts.items()}


def _stacked(values: Mapping[str, Tensor], sites: Sequence[str]) -> Tensor:
    return torch.stack([values[site] for site in sites], 1)


def _measured(words: str, dictionary: Dictionary, x_NSD: Tensor, y_NTD: Tensor) -> Reading:
    sums, fired = ReconstructionSums(y_NTD.shape[1]), 0
    for x, y in zip(x_NSD.split(512), y_NTD.split(512), strict=True):
        code = dictionary.encode(x)
        fired += len(code.values)
        sums.update(y, dictionary.decode(code, x).reshape(y.shape))
    fvu = sums.figures()["fvu"]
    return Reading(words, fvu if math.isfinite(fvu) else math.inf, fired / len(x_NSD))
