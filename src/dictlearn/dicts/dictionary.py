"""A dictionary: encoder, sparsity, decoder and an optional linear skip, put together."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from dictlearn_kernels import rounded
from dictlearn_kernels.fused_adam import Features
from torch import Tensor, nn
from torch.func import functional_call

from dictlearn.dicts.decoder import Decoder, DiagonalDecoder
from dictlearn.dicts.encoder import LinearEncoder, LinearMap
from dictlearn.dicts.leading import (
    as_tokens,
    check_codes,
    check_number,
    check_one_site,
    code_of,
    shaped,
)
from dictlearn.dicts.linked import LinkedDecoder
from dictlearn.dicts.summary import summary
from dictlearn.dicts.tied import TiedDecoder
from dictlearn.dicts.transforms import TransformDecoder
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Code, Encoding

LINKS = ("diagonal", "lower", "shared", "transforms")
Method = TypeVar("Method", bound=Callable[..., Any])


def _in_own_precision(method: Method) -> Method:
    """A dictionary's method without the autocast of the model it is called in.

    It would select features in low precision, which takes other features.
    """

    @functools.wraps(method)
    def computed(self: Dictionary, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.encoder.W_enc.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return computed  # type: ignore[return-value]


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
    encoder_scale: float = 1.0  # on the encoder rows that training starts from
    prefixes: tuple[int, ...] = ()  # nested dictionaries: widths of the inner ones and F itself
    link: str = (
        "diagonal"  # source s -> target s; lower: -> targets s, s + 1, ...; shared: one code
    )
    window: int | None = None  # lower: how many targets a source reaches; None: all from its own on
    tied: bool = False  # lower: one decoder vector per feature, the same to all its targets
    norm: str = "concat"  # shared: what a feature's decoder norm is, concat or sum
    ranks: tuple[int, ...] = ()  # transforms: of every feature's linear map, equal ones together

    @property
    def code_sources(self) -> int:
        """Sources of the code: each site has its own features, or all share them."""
        return 1 if self.link == "shared" else len(self.sources)


@final
class Dictionary(nn.Module):
    """x_NSD -> encode -> Code -> decode -> y_hat_NTD.

        pre   = W_enc (x - centre * b_dec) + b_enc
        code  = sparsity(pre)
        y_hat = code W_dec + b_dec (+ W_skip x)

    Each source has its own features, which write where `shape.link` says; with `link: shared` there
    is one code, read from all the sources put side by side.

    It computes in its parameters' precision, within autocast too; activations in another are converted.
    In training it lives in normalised units; `folded` gives the form in the model's own units, which
    is what is saved and what `dictlearn.load` returns.
    """

    def __init__(self, shape: Shape, sparsity: Callable[..., Sparsity]):
        super().__init__()
        check_shape(shape)
        self.shape = shape
        n_codes = shape.code_sources
        read = shape.width * len(shape.sources) // n_codes
        self.encoder = LinearEncoder(n_codes, shape.n_features, read)
        self.sparsity = sparsity(n_sources=n_codes, n_features=shape.n_features)
        self.decoder = _decoder(shape)
        self.W_skip = None  # T D_out D_in
        if shape.skip:
            n_targets = len(shape.targets)
            self.W_skip = nn.Parameter(torch.zeros(n_targets, shape.width, shape.width))
        self.training_figures: dict[str, Any] = {}
        self.figures: dict[str, float] = {}  # on held-out text, of a run that was evaluated
        if not self.encoder.W_enc.is_meta:  # there, only shapes are asked for
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
    def prefixes(self) -> tuple[int, ...]:
        return self.shape.prefixes

    @property
    def n_sources(self) -> int:
        return len(self.shape.sources)

    @property
    def n_targets(self) -> int:
        return len(self.shape.targets)

    @property
    def code_sources(self) -> int:
        """Rows of a code per token: as many as sources, or one that all share."""
        return self.shape.code_sources

    @property
    def layerwise(self) -> bool:
        """Whether source s is encoded from site s alone and target t needs none after source t."""
        return self.shape.link != "shared" and len(self.shape.sources) == len(self.shape.targets)

    def reads(self, t: int) -> range:
        """The code's sources that target t is decoded from."""
        check_number(t, self.n_targets, "target")
        return self.decoder.reads(t)

    def __repr__(self) -> str:
        return summary(self)

    # The weights as a notebook wants them. Of one source, site or target that axis is left out.

    @property
    def W_enc(self) -> Tensor:
        """What features read: [S, F, D], [F, D] of one site. pre-activations: x W_enc^T + b_enc.

        A shared code adds up what it reads from every site. An autoencoder reads x - b_dec.
        """
        rows = self.encoder.W_enc.unflatten(-1, (-1, self.width))  # code_sources, F, sites read, D
        rows = rows.squeeze(0).movedim(1, 0) if self.shape.link == "shared" else rows.squeeze(2)
        return rows.squeeze(0) if self.n_sources == 1 else rows

    @property
    def b_enc(self) -> Tensor:
        """[S, F]; [F] where all sites share a code, or there is one."""
        return self.encoder.b_enc.squeeze(0) if self.code_sources == 1 else self.encoder.b_enc

    @property
    def W_dec(self) -> Any:  # a tensor, but for a CLT
        """What features write: [S, F, D], [F, D] of one site.

        Of a crosscoder [T, F, D], put together anew each time. Of a CLT a tuple: for target t
        [the sources in `reads(t)`, F, D]; of a tied one [S, F, D], to be scaled for target t and
        source s by `decoder.links_TS[t, s]`. A MOLT has none: ValueError.
        """
        if isinstance(self.decoder, TransformDecoder):
            raise ValueError(
                f"a {self.kind} has no fixed decoder vectors; decoder.U and decoder.V are its maps"
            )
        if not isinstance(self.decoder, LinkedDecoder):
            return self.decoder.W_dec.squeeze(0) if self.n_sources == 1 else self.decoder.W_dec
        targets = tuple(self.decoder.W_dec)
        if self.n_targets == 1 and len(targets[0]) == 1:
            return targets[0].squeeze(0)
        return torch.cat(targets) if self.shape.link == "shared" else targets

    @property
    def b_dec(self) -> Tensor:
        """[T, D]; [D] of one target."""
        return self.decoder.b_dec.squeeze(0) if self.n_targets == 1 else self.decoder.b_dec

    # --- use ----------------------------------------------------------------------------------

    def forward(self, x_NSD: Tensor) -> Tensor:
        """The reconstruction of the targets: [N, T, D], or in the shape of `decode`."""
        return self.decode(self.encode(x_NSD), x_NSD)

    def encode(self, x_NSD: Tensor) -> Code:
        """Which features fire on each token and how strongly.

        `x_NSD` is [tokens, sites, width]; of a dictionary of one site also [tokens, width], or
        [batch, positions, width], which `decode` and `Code.dense` give back.
        """
        x_NSD, leading = as_tokens(x_NSD, self)
        code = self.encode_training(x_NSD).code
        return code if leading is None else code.shaped(leading)

    @_in_own_precision
    def encode_training(self, x_NSD: Tensor) -> Encoding:
        """The code and what its gradient estimators and losses read beside it."""
        as_tokens(x_NSD, self, strict=True)
        return self.sparsity(*self.encoding_of(self._own(x_NSD)))

    def encoding_of(self, x_NSD: Tensor) -> tuple[Tensor, LinearMap]:
        """(what the encoder multiplies, the encoder): what a sparsity takes.

        Where x is data, the gradient of its centre doesn't come through it but from the encoder.
        """
        if not self.shape.centre or x_NSD.requires_grad:
            return self.read(x_NSD), self.encoder.whole()
        b_dec = self.decoder.b_dec
        centre = b_dec.flatten()[None] if self.shape.link == "shared" else b_dec
        return self.read(x_NSD, b_dec.detach()), self.encoder.whole(centre)

    def read(self, x_NSD: Tensor, centre_SD: Tensor | None = None) -> Tensor:
        """What the encoder multiplies: centred; for a shared code all sites as one, [N, 1, S*D]."""
        if self.shape.centre:
            x_NSD = x_NSD - (self.decoder.b_dec if centre_SD is None else centre_SD)
        return x_NSD.flatten(1)[:, None] if self.shape.link == "shared" else x_NSD

    @_in_own_precision
    def decode(self, code: Code | Tensor, x_NSD: Tensor | None = None) -> Tensor:
        """y_hat [N, T, D]; without T for one target, and in their shape, where `encode` was given
        activations without an axis of sites.

        The code may be dense: [tokens, sources, F], or of one source [..., F]. A dictionary with a
        skip, and a MOLT, decode from their input too. ValueError where sizes don't fit.
        """
        code = code_of(code, self)
        x_NSD = None if x_NSD is None else self._own(as_tokens(x_NSD, self, code.n_tokens)[0])
        return shaped(self.decoder(code, x_NSD) + self.bypass(x_NSD), code.leading)

    @_in_own_precision
    def encode_source(self, x_ND: Tensor, s: int) -> Encoding:
        """The encoding of source s alone, a code of one source: for a pass that reads layer by layer.

        Raises ValueError where a source's features are chosen together with the others'.
        """
        if not self.layerwise:
            raise ValueError(
                f"a {self.kind} has one code for all its sites: encode(x) them together"
            )
        check_number(s, self.code_sources, "source")
        check_one_site(x_ND, self)
        x_ND = self._own(x_ND)
        if self.shape.centre:
            x_ND = x_ND - self.decoder.b_dec[s]
        return self.sparsity(x_ND[:, None], self.encoder.source(s), s)

    @_in_own_precision
    def decode_target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        """y_hat [N, D] of target t, from what `encode_source` gave for every s in `reads(t)`.

        `x[s]` [N, D] are the inputs of those sources, which a skip reads.
        """
        check_codes(codes, self.reads(t), t)
        x = {s: self._own(x_ND) for s, x_ND in x.items()}
        y_hat_ND = self.decoder.target(t, codes, x) + self.decoder.b_dec[t]
        return y_hat_ND if self.W_skip is None else y_hat_ND + x[t] @ self.W_skip[t].T

    @property
    def streams(self) -> bool:
        """Whether `squared_error` goes target by target: y_hat with its graph is much more."""
        return isinstance(self.decoder, LinkedDecoder)

    @_in_own_precision
    def squared_error(
        self,
        code: Code,
        x_NSD: Tensor,
        y_NTD: Tensor,
        weights: Sequence[float],
        *,
        only_features: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(sum_g weights[g] ||y - y_hat_g||^2 over the nested prefixes g, y - y_hat detached).

        The latter is [N, D] for every target, of the whole dictionary. What lives on for the backward
        pass is that and a number an entry. `only_features` leaves out bias and skip, and prefixes.
        """
        if only_features:
            return self.decoder.squared_error(code, x_NSD, y_NTD, weights, with_bias=False)
        if self.W_skip is not None:
            y_NTD = y_NTD - self.bypass(x_NSD)
        prefixes = self.shape.prefixes if len(self.shape.prefixes) > 1 else ()
        return self.decoder.squared_error(code, x_NSD, y_NTD, weights, prefixes)

    @_in_own_precision
    def decode_prefixes(self, code: Code, x_NSD: Tensor | None = None) -> list[Tensor]:
        """One reconstruction for each nested prefix, the whole dictionary last.

        Prefix g reads the features below prefixes[g] of the same code, so each feature is decoded
        once and the reconstructions are running sums (Bussmann et al. 2025).
        """
        code = code_of(code, self)
        if len(self.shape.prefixes) < 2:
            return [self.decode(code, x_NSD)]
        x_NSD = None if x_NSD is None else as_tokens(x_NSD, self, code.n_tokens)[0]
        y_hat = self.decoder.b_dec + self.bypass(x_NSD)
        outputs, low = [], 0
        for high in self.shape.prefixes:
            group = code.where((code.features >= low) & (code.features < high))
            y_hat, low = y_hat + self.decoder.without_bias(group, x_NSD), high
            outputs.append(y_hat)
        return outputs

    @_in_own_precision
    def decode_constant(self, code: Code, x_NSD: Tensor) -> Tensor:
        """y_hat [N, T, D] with a gradient for the code's values alone, none for decoder and skip."""
        constant = {name: p.detach() for name, p in self.decoder.named_parameters()}
        y_hat_NTD = functional_call(self.decoder, constant, (code, x_NSD))
        return y_hat_NTD + self.bypass(x_NSD).detach()

    def bypass(self, x_NSD: Tensor | None) -> Tensor:
        """What reaches the targets without passing through features: [N, T, D], or a scalar 0."""
        if self.W_skip is None:
            return self.decoder.b_dec.new_zeros(())
        if x_NSD is None:
            raise ValueError(
                f"a {self.kind} with a skip decodes from its input too: decode(code, x)"
            )
        return torch.einsum("tod,ntd->nto", self.W_skip, x_NSD)

    def _own(self, x: Tensor) -> Tensor:
        """Activations in the parameters' precision, as models in half precision don't give them."""
        return x.to(self.encoder.W_enc.dtype)

    # --- training -----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Random unit decoder rows; an autoencoder's encoder starts as its decoder's transpose."""
        self.decoder.reset_parameters()
        with torch.no_grad():
            autoencoder = self.shape.sources == self.shape.targets
            if autoencoder and isinstance(self.decoder, DiagonalDecoder | LinkedDecoder):
                self.encoder.W_enc.copy_(torch.cat(self.decoder.vectors(), dim=-1))
            else:
                nn.init.normal_(self.encoder.W_enc)
                norms = torch.linalg.vector_norm(self.encoder.W_enc, dim=-1, keepdim=True)
                self.encoder.W_enc.div_(norms)
            self.encoder.W_enc.mul_(self.shape.encoder_scale)

    @torch.no_grad()
    def initialise(self, y_NTD: Tensor) -> None:
        """Sets the decoder's bias to the mean of the targets, in the units it trains in."""
        self.decoder.b_dec.copy_(y_NTD.mean(0))

    def features(self, kept: torch.dtype | None = None) -> list[Features]:
        """The rows that a fused optimiser takes: those whose gradients are sums over a code.

        `kept` is a precision in which it is to keep a copy of W_enc up to date for selection.
        """
        W_enc = self.encoder.W_enc
        n_rows = W_enc.shape[0] * W_enc.shape[1]
        shadow = None if kept is None else rounded.keep(W_enc, kept)
        return [Features(((W_enc, 0),), n_rows, shadow=shadow), *self.decoder.features()]

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
            lambda: (self.encoder.pre(self.read(x)) for x in x_NSD())
        )
        frozen.sparsity.eval().requires_grad_(False).to(self.encoder.W_enc.device)
        return frozen

    @torch.no_grad()
    def folded(self, input_scale_S: Tensor, output_scale_T: Tensor) -> Dictionary:
        """A copy that reads and writes raw activations, where this one reads x * input_scale.

        W_enc stays, so a code's values are in raw units; that is valid because every sparsity here
        is positively homogeneous. Decoder rows carry the ratio of the two scales. A shared code
        keeps its training units, because its sites may differ in scale.
        """
        folded = copy.deepcopy(self)
        code_scale_S = input_scale_S
        if self.shape.link == "shared":  # one code for sites of several scales stays as it is
            code_scale_S = torch.ones_like(input_scale_S[:1])
            per_site = input_scale_S.repeat_interleave(self.width)
            folded.encoder.W_enc.mul_(per_site)
        folded.encoder.b_enc.div_(code_scale_S[:, None])
        folded.decoder.rescale(code_scale_S, output_scale_T)
        if folded.W_skip is not None:
            folded.W_skip.mul_((input_scale_S / output_scale_T)[:, None, None])
        folded.sparsity = self.sparsity.rescaled(1 / code_scale_S)
        folded.sparsity.eval().requires_grad_(False)
        return folded

    # --- plain description --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        shape = {key: value for key, value in vars(self.shape).items()}
        sparsity = {"name": self.sparsity.name, **self.sparsity.options()}
        return {**shape, "sparsity": sparsity}


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
    if shape.link not in LINKS:
        raise ValueError(f"dict.link={shape.link}: want one of {', '.join(LINKS)}")
    if shape.window is not None and shape.window < 1:
        raise ValueError(f"dict.window={shape.window}: want at least 1 target, or null for all")
    if shape.link == "transforms":
        check_transforms(shape)
    if shape.skip and shape.link == "shared":
        raise ValueError("dict.skip=true: sites that share a code have no source of their own")


def check_transforms(shape: Shape) -> None:
    ranks = shape.ranks
    if len(ranks) != shape.n_features or min(ranks, default=0) < 1:
        raise ValueError(
            f"dict.ranks={list(ranks)}: want a rank of 1 or more for each of the "
            f"{shape.n_features} transforms"
        )
    if len(shape.sources) != 1 or len(shape.targets) != 1:
        raise ValueError(f"a {shape.kind} has one source and one target, not {shape.sources}")


def _decoder(shape: Shape) -> Decoder:
    n_targets = len(shape.targets)
    if shape.link == "transforms":
        return TransformDecoder(shape.ranks, shape.width, shape.unit_norm)
    size = {"n_features": shape.n_features, "width": shape.width, "unit_norm": shape.unit_norm}
    if shape.link == "diagonal":
        return DiagonalDecoder(n_targets, **size)
    if shape.link == "shared":
        return LinkedDecoder([range(1)] * n_targets, **size, norm=shape.norm)
    reach = shape.window or n_targets
    sources_of = [range(max(0, t + 1 - reach), t + 1) for t in range(n_targets)]
    return TiedDecoder(sources_of, **size) if shape.tied else LinkedDecoder(sources_of, **size)
