"""What a training run takes, from sizes alone: bytes on one device, FLOPs and bytes of a token.

Memory is a sum of the tensors that exist together in each part of a step, and held to the measured
peak by a test. Times are floors: what must be computed and moved, at rates that good kernels reach.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dictlearn.ckpt.codec import leaves
from dictlearn.dicts.decoder import Costs
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.encoder import FLOAT, INT, candidate_bytes, search_bytes
from dictlearn.lm.costs import flops_per_token, layer_width, weights
from dictlearn.lm.language_model import LanguageModel
from dictlearn.objectives.protocol import Term
from dictlearn.sources.buffer import rows_held
from dictlearn.train import fused_adam
from dictlearn.train.signum import Signum
from dictlearn.types import ModelInfo
from dictlearn.verbs import build, train
from dictlearn.verbs.gpus import Gpu

ENTRY = 48  # bytes a code takes per stored entry: its value, ids, rows, sorted order and gradients

# Bytes that an optimiser step moves per number, beside reading and writing its own state. With
# gradients: p is read and written, g read; their norm reads g, clipping reads and writes it; decoder
# rows' gradients are projected (28) and the rows normalised again (20). With gradients in factors one
# pass does it all; decoder rows are read once more before it, for the projection's share of the norm.
WEIGHTS, GRADIENTS, CLIPPING, UNIT_NORM = 8, 4, 12, 48
UNIT_NORM_IN_FACTORS = 4


DEAD = 0.25  # share of dead features that a plan leaves room for


@dataclass(frozen=True)
class Run:
    """A run's parts, of which only the sizes count: dictionaries and model may be on meta."""

    cfg: DictConfig
    dictionary: Dictionary
    beside: tuple[Dictionary, ...]
    lm: LanguageModel | None
    info: ModelInfo
    buffer: int = 0  # bytes of stored rows that wait, where no model computes them

    @property
    def trained(self) -> tuple[Dictionary, ...]:
        return (self.dictionary, *self.beside)

    @property
    def sites(self) -> list[str]:
        shape = self.dictionary.shape
        return list(dict.fromkeys(shape.sources + shape.targets))

    @property
    def batch(self) -> int:
        return self.cfg.batch_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimiser step on one device."""
        return self.batch * self.cfg.trainer.accumulate_grad_batches

    @property
    def terms(self) -> list[Term]:
        return [term for _, term in build.build_objective(self.cfg).named_terms()]

    @property
    def stacked(self) -> int:
        """Numbers of a batch's activations, those of an autoencoder once."""
        shape = self.dictionary.shape
        same = shape.sources == shape.targets
        n_sites = len(shape.sources) + (0 if same else len(shape.targets))
        return self.batch * shape.width * n_sites

    def low_precision(self, on_gpu: bool) -> bool:
        """Whether the encoder's matmul runs in half the bytes."""
        if self.cfg.selection == "auto":
            return on_gpu or "bf16" in str(self.cfg.trainer.precision)
        return self.cfg.selection != "float32"


# --- memory -----------------------------------------------------------------------------------

RESIDENT = (
    "language model",
    "shuffle buffer",
    "weights",
    "copy for selection",
    "optimiser",
    "reduction buckets",
    "gradients in factors",
)
NORMALISED, GRADIENTS_OF_DEAD = "normalised batch", "gradients of dead features"
CODES_OF_DEAD, EARLIER_OF_DEAD = "codes of dead features", "all but the last of these"
BATCH = ("batch", NORMALISED)
PHASES = {
    "reading": ("model's batch", "batch"),
    "encoding": (*BATCH, "selection", "codes"),
    "decoding": (*BATCH, "codes", "reconstructions"),
    "reviving": (*BATCH, "codes", "reconstructions", "dead features", EARLIER_OF_DEAD),
    "differentiating": (*BATCH, "codes", "gradients", CODES_OF_DEAD, GRADIENTS_OF_DEAD),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by what they are for; some exist in one part of a step only."""

    parts: Mapping[str, float]
    keeps_gradients: bool  # from one batch to the next, or their memory
    reads_ahead: bool = False  # the model's next batch is under way during a step

    def at(self, phase: str) -> float:
        there = {*RESIDENT, *PHASES[phase]} | ({"gradients"} if self.keeps_gradients else set())
        there |= {"model's batch"} if self.reads_ahead else set()
        return sum(size for part, size in self.parts.items() if part in there)

    @property
    def phase(self) -> str:
        """The part of a step that takes the most."""
        return max(PHASES, key=self.at)

    @property
    def peak(self) -> float:
        return self.at(self.phase)

    def listed(self) -> dict[str, float]:
        """The parts for a reader."""
        unlisted = ("dead features", CODES_OF_DEAD, EARLIER_OF_DEAD, GRADIENTS_OF_DEAD)
        return {k: v for k, v in self.parts.items() if k not in unlisted}


def memory(run: Run, on_gpu: bool, devices: int = 1, dead: float = DEAD) -> Memory:
    """`dead` is the share of features that AuxK revives: it has gradients and a code of its own."""
    cfg = run.cfg
    parts = dict.fromkeys([*RESIDENT, *(p for phase in PHASES.values() for p in phase)], 0.0)
    factors = in_factors(run, on_gpu, devices)
    for dictionary in run.trained:
        _add_dictionary(parts, run, dictionary, on_gpu, factors)
        _add_revived(parts, run, dictionary, on_gpu, factors, dead)
    parts["batch"] += run.stacked * FLOAT
    if devices > 1:  # DDP's own copy of every gradient, in buckets
        parts["reduction buckets"] = parts["gradients"]
    ahead = run.lm is not None and _reads_ahead(cfg, on_gpu)
    if run.lm is not None:
        _add_model(parts, run, run.lm, on_gpu, ahead)
    parts["shuffle buffer"] = max(parts["shuffle buffer"], run.buffer)
    kept = factors and not on_gpu and any(map(count_kept, run.trained))
    several = cfg.trainer.accumulate_grad_batches > 1
    there = {k: v for k, v in parts.items() if v}
    return Memory(there, keeps_gradients=several or kept, reads_ahead=ahead)


def memory_together(runs: Sequence[Run], on_gpu: bool) -> float:
    """Peak bytes of runs that take their steps in turns, on one stream.

    The model and the buffer exist once, and the latest batch at all sites, which each run takes its
    own from. Weights and optimisers are those of all; what exists in a step only, that of one run.
    The runs begin one after the other too, with the stream's first activations at all sites.
    """
    sites = dict.fromkeys(site for run in runs for site in run.sites)
    model = buffer = batch = weights = own = step = begin = 0.0
    for run in runs:
        one = memory(run, on_gpu)
        kept = {*RESIDENT, *(["gradients"] if one.keeps_gradients else [])}
        resident = {part: size for part, size in one.parts.items() if part in kept}
        at_all_sites = len(sites) * run.batch * run.dictionary.width / run.stacked
        step = max(step, one.peak - sum(resident.values()))
        model = max(model, resident.pop("language model", 0.0))
        buffer = max(buffer, resident.pop("shuffle buffer", 0.0) * at_all_sites)
        batch = max(batch, one.parts["batch"] * at_all_sites)
        weights += resident.pop("weights", 0.0)
        own += sum(resident.values())
        begin = max(begin, _beginning(run))
    first = FLOAT * train.SAMPLE_TOKENS * len(sites) * max(run.dictionary.width for run in runs)
    return model + buffer + weights + max(batch + own + step, first + begin)


def _beginning(run: Run) -> float:
    """Bytes of a run's first activations: its own, normalised targets, and a site in float64."""
    width, targets = run.dictionary.width, run.dictionary.n_targets
    return FLOAT * train.SAMPLE_TOKENS * (run.stacked // run.batch + width * targets + 2 * width)


def _add_dictionary(
    parts: dict[str, float], run: Run, dictionary: Dictionary, on_gpu: bool, factors: bool
) -> None:
    """A dictionary's part of a step without dead features."""
    cfg, k, encoder = run.cfg, most_entries(dictionary), dictionary.encoder
    low = run.low_precision(on_gpu)
    n, W_enc = count(dictionary), encoder.n_features * encoder.width
    outputs = run.batch * dictionary.width * dictionary.n_targets * FLOAT
    normalised = run.stacked * FLOAT * (2 if dictionary.shape.centre else 1)
    code = code_bytes(dictionary, run.batch, k)
    parts["weights"] += FLOAT * n
    parts["optimiser"] += n * state_bytes(cfg)
    parts[NORMALISED] += normalised
    if not on_gpu:
        selection = encoder.selection_bytes(run.batch, k, cfg.selection, low)
    else:
        selection = candidate_bytes(run.batch, k)
        if low and factors:  # the optimiser rounds W_enc, with two norms a row
            rows = encoder.n_sources * encoder.n_features
            parts["copy for selection"] += 2 * W_enc * encoder.n_sources + 2 * FLOAT * rows
        elif low:
            selection += 2 * W_enc
    # Sources are encoded one after the other, and so are dictionaries.
    parts["selection"] = max(parts["selection"], selection)
    parts["codes"] += code
    parts["gradients"] += FLOAT * (n - count_rows(dictionary) if factors else n)
    parts["reconstructions"] += outputs * (2 if dictionary.streams else 1)
    if factors:  # of the batches before this one
        kept = 2 * outputs + normalised + code
        parts["gradients in factors"] += (cfg.trainer.accumulate_grad_batches - 1) * kept


def _add_revived(
    parts: dict[str, float],
    run: Run,
    dictionary: Dictionary,
    on_gpu: bool,
    factors: bool,
    dead: float,
) -> None:
    """What a term adds that makes a code of dead features."""
    k = max(term.revived(dictionary, dead) for term in run.terms)
    if not k:
        return
    encoder, n_dead = dictionary.encoder, dead * dictionary.n_features
    parts["reconstructions"] += run.batch * dictionary.width * dictionary.n_targets * FLOAT
    parts[EARLIER_OF_DEAD] = parts[CODES_OF_DEAD]
    parts[CODES_OF_DEAD] += code_bytes(dictionary, run.batch, k)
    if not factors:
        # As dense tensors, one matrix's two before they are one. The backward pass takes the
        # trained in reverse: the gradients of those before this one do not exist yet.
        twice = FLOAT * 2 * max(p.numel() for p in dictionary.parameters() if p.ndim > 2)
        before = parts["gradients"] - FLOAT * count(dictionary)
        parts[GRADIENTS_OF_DEAD] = max(parts[GRADIENTS_OF_DEAD], twice - before)
    looked_at = FLOAT * n_dead * encoder.width
    if on_gpu:
        looked_at += candidate_bytes(run.batch, k)
    else:
        looked_at += search_bytes(run.batch, n_dead, k, low=False)
    parts["dead features"] = max(parts["dead features"], looked_at)


def _reads_ahead(cfg: DictConfig, on_gpu: bool) -> bool:
    return cfg.source.get("ahead", False) in (("auto", True) if on_gpu else (True,))


def _add_model(
    parts: dict[str, float], run: Run, lm: LanguageModel, on_gpu: bool, ahead: bool
) -> None:
    """The language model, its batch, and the buffer that its activations wait in."""
    cfg, stored = run.cfg, model_bytes(run.cfg, on_gpu)
    context = cfg.data.context or run.info.context_length
    windows = cfg.source.get("lm_batch_windows") or -(-run.batch // context)
    sites = len(run.sites) * run.dictionary.width
    parts["language model"] = stored * weights(lm)
    parts["model's batch"] = windows * context * stored * (sites + layer_width(lm))
    rows = rows_held(cfg.source.get("buffer_tokens", 0) // 2)
    rows += windows * context if ahead else 0  # one read more waits
    kept = {"model": stored, "float32": 4, "bfloat16": 2}[cfg.source.get("store_dtype", "model")]
    parts["shuffle buffer"] = rows * (run.stacked // run.batch * kept + 2 * INT)


def in_factors(run: Run, on_gpu: bool, devices: int) -> bool:
    """Whether the gradients of feature rows never exist as tensors: the choice that training makes."""
    cfg = run.cfg
    if not isinstance(instantiate(cfg.optim)([nn.Parameter()]), fused_adam.FusedAdam):
        return False
    if devices > 1 or str(cfg.trainer.precision) == "16-mixed":
        return False
    rows = sum(count_rows(one) + count_kept(one) for one in run.trained)
    return fused_adam.pays(rows, on_gpu)


def count_rows(dictionary: Dictionary) -> int:
    """Numbers in `Dictionary.features()` whose gradients can stay in factors, also on meta."""
    return dictionary.encoder.W_enc.numel() + decoder_costs(dictionary).in_factors


def count_kept(dictionary: Dictionary) -> int:
    """The others in `Dictionary.features()`: a CPU keeps the memory that their gradients are in."""
    return decoder_costs(dictionary).dense


def decoder_costs(dictionary: Dictionary) -> Costs:
    """What decoding costs in training. ValueError where sparsity or decoder don't say."""
    return dictionary.decoder.costs(entries(dictionary))


def entries(dictionary: Dictionary) -> float:
    """Entries that training stores per token and source. ValueError where its sparsity doesn't say."""
    return dictionary.sparsity.entries(dictionary.shape.k)


def most_entries(dictionary: Dictionary) -> float:
    """The same at its largest: thresholds let many features through before they have learned."""
    first = dictionary.sparsity.first_entries(dictionary.shape.k, dictionary.n_features)
    return max(first, entries(dictionary))


def code_bytes(dictionary: Dictionary, n_tokens: int, k: float) -> float:
    """A code of k features of every token and source, with all that is derived from it."""
    costs, entries = dictionary.decoder.costs(k), n_tokens * dictionary.code_sources * k
    return ENTRY * entries + INT * n_tokens * costs.indices + FLOAT * entries * costs.per_entry


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


@functools.cache
def _state_bytes(yaml: str) -> float:
    """One step of it on rows that are long enough for what is kept once a row not to count."""
    parameter = nn.Parameter(torch.zeros(1, 4, 1024))
    one = instantiate(OmegaConf.create(yaml))([parameter])
    parameter.grad = torch.ones_like(parameter)
    if isinstance(one, Signum):
        one.train()
    one.step()
    state = [value for _, value in leaves(one.state_dict())]
    kept = [v for v in state if isinstance(v, Tensor) and v.numel() > 1]
    return sum(v.numel() * v.element_size() for v in kept) / parameter.numel()


def state_bytes(cfg: DictConfig) -> float:
    """Bytes of the optimiser's state for every number of a matrix."""
    return _state_bytes(OmegaConf.to_yaml(cfg.optim, resolve=True))


def model_bytes(cfg: DictConfig, on_gpu: bool) -> int:
    """Bytes per parameter of the language model."""
    return 2 if cfg.model.dtype == "bfloat16" or (cfg.model.dtype == "auto" and on_gpu) else FLOAT


# --- time -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Work for one token: FLOPs in bfloat16 and in float32, and bytes moved, which overlap."""

    bfloat16: float = 0.0
    float32: float = 0.0
    moved: float = 0.0

    @property
    def flops(self) -> float:
        return self.bfloat16 + self.float32

    def seconds(self, gpu: Gpu) -> float:
        computing = self.bfloat16 / gpu.bfloat16 + self.float32 / gpu.float32
        return max(computing, self.moved / gpu.bandwidth)


def work(run: Run, on_gpu: bool = True, devices: int = 1) -> dict[str, Work]:
    """Work for one token, by part. The optimiser's is that of a step divided by its tokens."""
    cfg, tokens = run.cfg, run.step_tokens
    parts: dict[str, Work] = {}
    if run.lm is not None:
        flops = flops_per_token(run.lm, run.info, run.sites)
        context = cfg.data.context or run.info.context_length
        lm_tokens = (cfg.source.get("lm_batch_windows") or -(-run.batch // context)) * context
        stored = model_bytes(cfg, on_gpu)
        parts["language model"] = _at(stored == 2, flops, weights(run.lm) * stored / lm_tokens)
    factors = in_factors(run, on_gpu, devices)
    own = WEIGHTS + 2 * state_bytes(cfg)
    encode = decode = Work()
    moved = 0.0
    for one in run.trained:
        encoder = sum(p.numel() for p in one.encoder.parameters())
        # A CPU's matmul writes pre-activations, the selection reads them, and once more of itself.
        written = 0 if on_gpu else 3 * FLOAT * one.code_sources * one.n_features
        low = run.low_precision(on_gpu)
        kept = low and on_gpu and factors  # the optimiser writes what the matmul reads
        read = (2 if kept else FLOAT + (4 if low else 0)) * encoder / run.batch
        moved += 2 * encoder if kept else 0
        encode = _sum(encode, _at(low, 2.0 * encoder, written + read))
        decode = _sum(decode, decoding(one, run.batch, factors))
        decoder = sum(p.numel() for p in one.decoder.parameters())
        dense = count(one) - (count_rows(one) if factors else 0)
        moved += own * count(one) + (GRADIENTS + (CLIPPING if cfg.clip_norm else 0)) * dense
        if one.shape.unit_norm:
            moved += (UNIT_NORM_IN_FACTORS if factors else UNIT_NORM) * decoder
    return parts | {
        "encoder": encode,
        "decode": decode,
        "optimiser": Work(
            moved=moved / tokens, float32=12.0 * sum(map(count, run.trained)) / tokens
        ),
    }


def decoding(dictionary: Dictionary, n_tokens: int, factors: bool) -> Work:
    """Decoding and its backward pass over active features. No feature is dead.

    What they write is gathered once; for the gradients of decoder and encoder rows the errors and the
    inputs are, either to be written once for the batch or, in factors, to be summed twice.
    """
    shape = dictionary.shape
    k, costs = entries(dictionary), decoder_costs(dictionary)
    skip = 6.0 * len(shape.targets) * shape.width**2 if shape.skip else 0.0
    gathered = FLOAT * (3 if factors else 2) * costs.gathered
    gathered += FLOAT * 2 * min(costs.multiplied, costs.once / n_tokens)
    encoder = 2.0 * k * dictionary.code_sources * dictionary.encoder.width
    return Work(
        float32=6.0 * costs.multiplied + encoder + skip,
        moved=gathered + (0 if factors else FLOAT * count(dictionary) / n_tokens),
    )


def _at(low: bool, flops: float, moved: float) -> Work:
    return Work(bfloat16=flops, moved=moved) if low else Work(float32=flops, moved=moved)


def _sum(a: Work, b: Work) -> Work:
    return Work(a.bfloat16 + b.bfloat16, a.float32 + b.float32, a.moved + b.moved)
