"""A dictionary: encoder, sparsity, decoder and an optional linear skip, put together."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from dictlearn_kernels import rounded
from dictlearn_kernels.fused_adam import FeatureRows
from torch import Tensor, nn
from torch.func import functional_call

from dictlearn.dicts.encoder import LinearMap
from dictlearn.dicts.leading import (
    as_tokens,
    check_codes,
    check_number,
    check_one_site,
    code_of,
    shaped,
)
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.summary import summary
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Code, Encoding

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


@final
class Dictionary(nn.Module):
    """x_NSD -> encode -> Code -> decode -> y_hat_NTD.

        pre   = W_enc (x - centre * b_dec) + b_enc
        code  = sparsity(pre)
        y_hat = code W_dec + b_dec (+ W_skip x)

    Each source has its own features, which write where `shape.link` says; of some links there is one
    code, read from all the sources put side by side.

    It computes in its parameters' precision, within autocast too; activations in another are converted.
    In training it lives in normalised units; `folded` gives the form in the model's own units, which
    is what is saved and what `dictlearn.load` returns.
    """

    def __init__(self, shape: Shape, sparsity: Callable[..., Sparsity]):
        super().__init__()
        shape.check()
        self.shape = shape
        self.encoder = shape.link.encoder(shape)
        self.sparsity = sparsity(n_sources=shape.code_sources, n_features=shape.n_features)
        self.decoder = shape.link.decoder(shape)
        self.W_skip = None  # T D_out D_in
        if shape.skip:
            n_targets = len(shape.targets)
            self.W_skip = nn.Parameter(torch.zeros(n_targets, shape.width, shape.width))
        self.provenance: dict[str, Any] = {}  # model, text and options of training; plain JSON
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
        if self.shape.link.one_code or self.n_sources != self.n_targets:
            return False
        return all(self.reads(t).stop <= t + 1 for t in range(self.n_targets))

    @property
    def reads_what_it_writes(self) -> bool:
        """Whether a feature writes one vector to each site that it reads, and nowhere else."""
        if self.sources != self.targets or not self.decoder.writes_directions:
            return False
        each = range(self.n_targets)
        one = self.shape.link.one_code
        return [self.reads(t) for t in each] == [range(1) if one else range(t, t + 1) for t in each]

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
        rows = rows.squeeze(0).movedim(1, 0) if self.shape.link.one_code else rows.squeeze(2)
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
        return self.decoder.vectors()

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
        encoding = self.sparsity(*self.encoding_of(self._own(x_NSD)))
        if torch.is_anomaly_enabled() and not self.sparsity.signed:
            name = self.sparsity.name
            assert (encoding.code.values > 0).all(), f"{name} gave a feature that is not positive"
        return encoding

    def encoding_of(self, x_NSD: Tensor) -> tuple[Tensor, LinearMap]:
        """(what the encoder multiplies, the encoder): what a sparsity takes.

        Where x is data, the gradient of its centre doesn't come through it but from the encoder.
        """
        if not self.shape.centre or x_NSD.requires_grad:
            return self.read(x_NSD), self.encoder.whole()
        b_dec = self.decoder.b_dec
        centre = b_dec.flatten()[None] if self.shape.link.one_code else b_dec
        return self.read(x_NSD, b_dec.detach()), self.encoder.whole(centre)

    def read(self, x_NSD: Tensor, centre_SD: Tensor | None = None) -> Tensor:
        """What the encoder multiplies: centred; for a shared code all sites as one, [N, 1, S*D]."""
        if self.shape.centre:
            x_NSD = x_NSD - (self.decoder.b_dec if centre_SD is None else centre_SD)
        return x_NSD.flatten(1)[:, None] if self.shape.link.one_code else x_NSD

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
        return self.decoder.streams

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
            if self.reads_what_it_writes:
                own = [0 if self.shape.link.one_code else t for t in range(self.n_targets)]
                rows = [self.decoder.written(t, s, slice(None)) for t, s in enumerate(own)]
                one = self.shape.link.one_code
                self.encoder.W_enc.copy_(torch.cat(rows, -1)[None] if one else torch.stack(rows))
            else:
                nn.init.normal_(self.encoder.W_enc)
                norms = torch.linalg.vector_norm(self.encoder.W_enc, dim=-1, keepdim=True)
                self.encoder.W_enc.div_(norms)
            self.encoder.W_enc.mul_(self.shape.encoder_scale)

    @torch.no_grad()
    def initialise(self, y_NTD: Tensor) -> None:
        """Sets the decoder's bias to the mean of the targets, in the units it trains in."""
        self.decoder.b_dec.copy_(y_NTD.mean(0))

    def features(self, kept: torch.dtype | None = None) -> list[FeatureRows]:
        """The rows that a fused optimiser takes: those whose gradients are sums over a code.

        `kept` is a precision in which it is to keep a copy of W_enc up to date for selection.
        """
        W_enc = self.encoder.W_enc
        n_rows = W_enc.shape[0] * W_enc.shape[1]
        shadow = None if kept is None else rounded.keep(W_enc, kept)
        return [FeatureRows(((W_enc, 0),), n_rows, shadow=shadow), *self.decoder.features()]

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

        W_enc stays, so a code's values are in raw units: the sparsity says what it is in these.
        Decoder rows carry the ratio of the two scales. A code keeps its training units where it is
        read from several sites, or compares their features, because sites may differ in scale.
        """
        folded = copy.deepcopy(self)
        code_scale_S = input_scale_S
        if self.shape.link.one_code:
            code_scale_S = torch.ones_like(input_scale_S[:1])
            per_site = input_scale_S.repeat_interleave(self.width)
            folded.encoder.W_enc.mul_(per_site)
        elif self.sparsity.across_layers:
            code_scale_S = torch.ones_like(input_scale_S)
            folded.encoder.W_enc.mul_(input_scale_S[:, None, None])
        folded.encoder.b_enc.div_(code_scale_S[:, None])
        folded.decoder.rescale(code_scale_S, output_scale_T)
        if folded.W_skip is not None:
            folded.W_skip.mul_((input_scale_S / output_scale_T)[:, None, None])
        folded.sparsity = self.sparsity.rescaled(1 / code_scale_S[:, None])
        folded.sparsity.eval().requires_grad_(False)
        return folded

    # --- plain description --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        sparsity = {"name": self.sparsity.name, **self.sparsity.options()}
        return {**self.shape.to_json(), "sparsity": sparsity}
