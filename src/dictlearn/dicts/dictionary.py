"""A dictionary: encoder, sparsity, decoder and an optional linear skip, put together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from dictlearn.dicts.decoder import DiagonalDecoder
from dictlearn.dicts.encoder import LinearEncoder
from dictlearn.sparsity import registry as sparsity_registry
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Code, Encoding


@dataclass(frozen=True)
class Shape:
    """What a dictionary connects and how wide it is; with its sparsity, all that rebuilds it."""

    kind: str
    sources: tuple[str, ...]  # site names, read
    targets: tuple[str, ...]  # site names, reconstructed
    width: int  # D, of every site
    n_features: int  # F, per source
    k: float  # active features per token and source asked for: a budget or a target
    centre: bool = False  # subtract b_dec from the input (autoencoders)
    skip: bool = False  # a linear path from source to target beside the features
    unit_norm: bool = True  # decoder rows are kept at norm 1 during training
    prefixes: tuple[int, ...] = ()  # nested dictionaries: widths of the inner ones and F itself


@final
class Dictionary(nn.Module):
    """x_NSD -> encode -> Code -> decode -> y_hat_NTD.

        pre   = W_enc (x - centre * b_dec) + b_enc
        code  = sparsity(pre)
        y_hat = code W_dec + b_dec (+ W_skip x)

    In training it lives in normalised units; `folded` gives the form in the model's own units, which
    is what is saved and what `dictlearn.load` returns.
    """

    def __init__(self, shape: Shape, sparsity: Callable[..., Sparsity]):
        super().__init__()
        check_shape(shape)
        self.shape = shape
        n_sites = len(shape.sources)
        self.encoder = LinearEncoder(n_sites, shape.n_features, shape.width)
        self.sparsity = sparsity(n_sources=n_sites, n_features=shape.n_features)
        self.decoder = DiagonalDecoder(n_sites, shape.n_features, shape.width, shape.unit_norm)
        self.W_skip = None  # T D_out D_in
        if shape.skip:
            self.W_skip = nn.Parameter(torch.zeros(n_sites, shape.width, shape.width))
        self.training_figures: dict[str, Any] = {}
        self.reset_parameters()

    # --- what it is ---------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return self.shape.kind

    @property
    def sources(self) -> tuple[str, ...]:
        return self.shape.sources

    @property
    def targets(self) -> tuple[str, ...]:
        return self.shape.targets

    @property
    def width(self) -> int:
        return self.shape.width

    @property
    def n_features(self) -> int:
        return self.shape.n_features

    @property
    def n_sources(self) -> int:
        return len(self.shape.sources)

    @property
    def n_targets(self) -> int:
        return len(self.shape.targets)

    # --- use ----------------------------------------------------------------------------------

    def forward(self, x_NSD: Tensor) -> Tensor:
        """The reconstruction of the targets: [N, T, D]."""
        return self.decode(self.encode(x_NSD), x_NSD)

    def encode(self, x_NSD: Tensor) -> Code:
        """Which features fire on each token and how strongly."""
        return self.encode_training(x_NSD).code

    def encode_training(self, x_NSD: Tensor) -> Encoding:
        """The code and what its gradient estimators and losses read beside it."""
        self._check(x_NSD)
        return self.sparsity(self.centred(x_NSD), self.encoder)

    def decode(self, code: Code, x_NSD: Tensor | None = None) -> Tensor:
        """y_hat [N, T, D]. A dictionary with a skip needs its input too."""
        return self.decoder(code) + self.bypass(x_NSD)

    def decode_prefixes(self, code: Code, x_NSD: Tensor | None = None) -> list[Tensor]:
        """One reconstruction for each nested prefix, the whole dictionary last.

        Prefix g reads the features below prefixes[g] of the same code, so each feature is decoded
        once and the reconstructions are running sums (Bussmann et al. 2025).
        """
        if len(self.shape.prefixes) < 2:
            return [self.decode(code, x_NSD)]
        y_hat = self.decoder.b_dec + self.bypass(x_NSD)
        outputs, low = [], 0
        for high in self.shape.prefixes:
            in_group = code.where((code.features >= low) & (code.features < high))
            y_hat = y_hat + self.decoder.without_bias(in_group)
            outputs.append(y_hat)
            low = high
        return outputs

    def bypass(self, x_NSD: Tensor | None) -> Tensor:
        """What reaches the targets without passing through features: [N, T, D], or a scalar 0."""
        if self.W_skip is None:
            return self.decoder.b_dec.new_zeros(())
        if x_NSD is None:
            raise ValueError(
                f"a {self.kind} with a skip decodes from its input too: decode(code, x)"
            )
        return torch.einsum("tod,ntd->nto", self.W_skip, x_NSD)

    def centred(self, x_NSD: Tensor) -> Tensor:
        return x_NSD - self.decoder.b_dec if self.shape.centre else x_NSD

    def _check(self, x_NSD: Tensor) -> None:
        if x_NSD.ndim != 3 or x_NSD.shape[1:] != (self.n_sources, self.width):
            raise ValueError(
                f"activations of shape {tuple(x_NSD.shape)}: this {self.kind} reads "
                f"[tokens, {self.n_sources} sites, width {self.width}]"
            )

    # --- training -----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Random unit decoder rows; an autoencoder's encoder starts as its decoder's transpose."""
        nn.init.normal_(self.decoder.W_dec)
        with torch.no_grad():
            self.decoder.W_dec.div_(self.decoder.norms()[..., None])
            if not self.shape.unit_norm:
                self.decoder.W_dec.mul_(0.1)
            if self.shape.sources == self.shape.targets:
                self.encoder.W_enc.copy_(self.decoder.W_dec)
            else:
                nn.init.normal_(self.encoder.W_enc)
                norms = torch.linalg.vector_norm(self.encoder.W_enc, dim=-1, keepdim=True)
                self.encoder.W_enc.div_(norms)

    @torch.no_grad()
    def initialise(self, y_NTD: Tensor) -> None:
        """Sets the decoder's bias to the mean of the targets, in the units it trains in."""
        self.decoder.b_dec.copy_(y_NTD.mean(0))

    def project_gradients(self) -> None:
        """After the backward pass, before the optimiser's step."""
        self.decoder.project_gradient()

    def after_step(self) -> None:
        """After every optimiser step: puts constrained parameters back where they must be."""
        self.decoder.after_step()
        self.sparsity.after_step()

    # --- inference form -----------------------------------------------------------------------

    @torch.no_grad()
    def inference_form(self, x_NSD: Callable[[], Iterable[Tensor]]) -> Dictionary:
        """A copy whose sparsity needs no batch; `x_NSD()` yields held-out activations to measure on."""
        frozen = copy.deepcopy(self).eval().requires_grad_(False)
        frozen.sparsity = frozen.sparsity.inference_form(
            lambda: (self.encoder.pre(self.centred(x)) for x in x_NSD())
        )
        frozen.sparsity.eval().requires_grad_(False)
        return frozen

    @torch.no_grad()
    def folded(self, input_scale_S: Tensor, output_scale_T: Tensor) -> Dictionary:
        """A copy that reads and writes raw activations, where this one reads x * input_scale.

        W_enc stays, so a code's values are in raw units; that is valid because every sparsity here
        is positively homogeneous. Decoder rows carry the ratio of the two scales.
        """
        folded = copy.deepcopy(self)
        ratio_S = input_scale_S / output_scale_T
        folded.encoder.b_enc.div_(input_scale_S[:, None])
        folded.decoder.W_dec.mul_(ratio_S[:, None, None])
        folded.decoder.b_dec.div_(output_scale_T[:, None])
        if folded.W_skip is not None:
            folded.W_skip.mul_(ratio_S[:, None, None])
        folded.sparsity = self.sparsity.rescaled(1 / input_scale_S)
        folded.sparsity.eval().requires_grad_(False)
        return folded

    # --- plain description --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        shape = {key: value for key, value in vars(self.shape).items()}
        sparsity = {"name": self.sparsity.name, **self.sparsity.options()}
        return {**shape, "sparsity": sparsity}


def from_json(description: dict[str, Any]) -> Dictionary:
    """An untrained dictionary of the described shape. Names are looked up, never imported."""
    fields = dict(description)
    sparsity = dict(fields.pop("sparsity"))
    name = sparsity.pop("name")
    known = sparsity_registry()
    if name not in known:
        raise ValueError(f"sparsity {name!r} is not one of {sorted(known)}")
    for key in ("sources", "targets", "prefixes"):
        fields[key] = tuple(fields[key])
    return Dictionary(Shape(**fields), lambda **sizes: known[name](**sizes, **sparsity))


def check_shape(shape: Shape) -> None:
    if not 0 < shape.k <= shape.n_features:
        raise ValueError(
            f"dict.k={shape.k}: want more than 0 and at most dict.n_features={shape.n_features}"
        )
    widths = shape.prefixes
    ascending = all(a < b for a, b in zip((0, *widths), widths, strict=False))
    if widths and not (ascending and widths[-1] == shape.n_features):
        raise ValueError(
            f"dict.prefixes={list(widths)}: want ascending widths, or fractions of the features, "
            f"that end with all dict.n_features={shape.n_features}"
        )
