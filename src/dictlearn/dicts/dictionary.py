"""A dictionary: an encoder, a sparsity, a decoder and an optional linear skip."""

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
from dictlearn.words import a

Method = TypeVar("Method", bound=Callable[..., Any])


def _in_own_precision(method: Method) -> Method:
    """Disables autocast in a dictionary's method, as low precision would select other features."""

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

    `shape.link` says which targets the features of a source write to. Each source has its own code,
    or all share one code, for which the encoder reads their concatenation.

    It computes in its parameters' precision, also within autocast, and converts other activations.
    During training its units are normalised; `folded` converts it to the model's own units, in which
    it is saved and which `dictlearn.load` returns.
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
        self.figures: dict[str, float] = {}  # on held-out text, if the run was evaluated
        if not self.encoder.W_enc.is_meta:  # on meta there are only shapes
            self.reset_parameters()

    # --- sizes and weights --------------------------------------------------------------------

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
        """Rows of a code per token: one for every source, or one that all share."""
        return self.shape.code_sources

    @property
    def layerwise(self) -> bool:
        """Whether source s is encoded from site s alone, and target t needs no source after t."""
        if self.shape.link.one_code or self.n_sources != self.n_targets:
            return False
        return all(self.reads(t).stop <= t + 1 for t in range(self.n_targets))

    @property
    def decodes_from_input(self) -> bool:
        """Whether decoding needs the input too, for a skip or for maps."""
        return self.W_skip is not None or len(self.decoder.maps()) > 0

    @property
    def reads_what_it_writes(self) -> bool:
        """Whether a feature writes one vector to each site that it reads, and nowhere else."""
        if self.sources != self.targets or not self.decoder.writes_directions:
            return False
        shared = self.shape.link.one_code
        return all(
            self.reads(t) == (range(1) if shared else range(t, t + 1))
            for t in range(self.n_targets)
        )

    def reads(self, t: int) -> range:
        """The code's sources that target t is decoded from."""
        check_number(t, self.n_targets, "target")
        return self.decoder.reads(t)

    def __repr__(self) -> str:
        return summary(self)

    # The weights for notebooks: an axis of one source, site or target is left out.

    @property
    def W_enc(self) -> Tensor:
        """The encoder's rows: [S, F, D], or [F, D] for one site.

        Pre-activations are x W_enc^T + b_enc. A shared code sums x W_enc^T over the sites, and an
        autoencoder reads x - b_dec.
        """
        rows = self.encoder.W_enc.unflatten(-1, (-1, self.width))  # code_sources, F, sites read, D
        rows = rows.squeeze(0).movedim(1, 0) if self.shape.link.one_code else rows.squeeze(2)
        return rows.squeeze(0) if self.n_sources == 1 else rows

    @property
    def b_enc(self) -> Tensor:
        """The encoder's biases: [S, F], or [F] if there is one code."""
        return self.encoder.b_enc.squeeze(0) if self.code_sources == 1 else self.encoder.b_enc

    @property
    def W_dec(self) -> Any:  # a tensor, but for a CLT
        """The decoder's rows: [S, F, D], or [F, D] for one site.

        A crosscoder has [T, F, D], a new tensor at each access. A CLT has a tuple with [sources in
        `reads(t)`, F, D] for each target t; a tied one has [S, F, D], to be scaled for target t and
        source s by `decoder.links_TS[t, s]`. A MOLT has none and raises ValueError.
        """
        return self.decoder.vectors()

    @property
    def b_dec(self) -> Tensor:
        """The decoder's biases: [T, D], or [D] for one target."""
        return self.decoder.b_dec.squeeze(0) if self.n_targets == 1 else self.decoder.b_dec

    # --- use ----------------------------------------------------------------------------------

    def forward(self, x_NSD: Tensor) -> Tensor:
        """The reconstruction of the targets, in the shape that `decode` returns."""
        return self.decode(self.encode(x_NSD), x_NSD)

    def encode(self, x_NSD: Tensor) -> Code:
        """The features that fire on each token, with their values.

        `x_NSD` is [tokens, sites, width]. For one site it may also be [tokens, width] or [batch,
        positions, width]; `decode` and `Code.dense` then return these leading dimensions.
        """
        x_NSD, leading = as_tokens(x_NSD, self)
        code = self.encode_training(x_NSD).code
        return code if leading is None else code.shaped(leading)

    @_in_own_precision
    def encode_training(self, x_NSD: Tensor) -> Encoding:
        """The code with the extra entries that gradient estimators and losses use."""
        as_tokens(x_NSD, self, strict=True)
        encoding = self.sparsity(*self.encoding_of(self._own(x_NSD)))
        if torch.is_anomaly_enabled() and not self.sparsity.signed:
            name = self.sparsity.name
            assert (encoding.code.values > 0).all(), f"{name} gave a feature that is not positive"
        return encoding

    def encoding_of(self, x_NSD: Tensor) -> tuple[Tensor, LinearMap]:
        """(the tensor that the encoder multiplies, the encoder's map), as a sparsity takes them.

        If x needs no gradient, the encoder's kernel computes the gradient of b_dec as a centre.
        """
        if not self.shape.centre or x_NSD.requires_grad:
            return self.read(x_NSD), self.encoder.linear_map()
        b_dec = self.decoder.b_dec
        centre = b_dec.flatten()[None] if self.shape.link.one_code else b_dec
        return self.read(x_NSD, b_dec.detach()), self.encoder.linear_map(centre)

    def read(self, x_NSD: Tensor, centre_SD: Tensor | None = None) -> Tensor:
        """The tensor that the encoder multiplies: x centred, for a shared code as [N, 1, S*D]."""
        if self.shape.centre:
            x_NSD = x_NSD - (self.decoder.b_dec if centre_SD is None else centre_SD)
        return x_NSD.flatten(1)[:, None] if self.shape.link.one_code else x_NSD

    @_in_own_precision
    def decode(self, code: Code | Tensor, x_NSD: Tensor | None = None) -> Tensor:
        """y_hat [N, T, D]; if `encode` got activations without an axis of sites, in their shape.

        A dense code is accepted too: [tokens, sources, F], or [..., F] for one source. A dictionary
        with a skip and a MOLT also need their input. Raises ValueError if sizes don't fit.
        """
        code = code_of(code, self)
        x_NSD = None if x_NSD is None else self._own(as_tokens(x_NSD, self, code.n_tokens)[0])
        return shaped(self.decoder(code, x_NSD) + self.bypass(x_NSD), code.leading)

    @_in_own_precision
    def encode_source(self, x_ND: Tensor, s: int) -> Encoding:
        """The encoding of source s alone, for a forward pass that reads layer by layer.

        Raises ValueError if features of several sources are selected together.
        """
        if not self.layerwise:
            raise ValueError(
                f"{a(self.kind)} has one code for all its sites: encode(x) them together"
            )
        check_number(s, self.code_sources, "source")
        check_one_site(x_ND, self)
        x_ND = self._own(x_ND)
        if self.shape.centre:
            x_ND = x_ND - self.decoder.b_dec[s]
        return self.sparsity(x_ND[:, None], self.encoder.source(s), s)

    @_in_own_precision
    def decode_target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        """y_hat [N, D] of target t, from a code of `encode_source` for every s in `reads(t)`.

        `x[s]`, [N, D], is the input of source s, for a skip.
        """
        check_codes(codes, self.reads(t), t)
        x = {s: self._own(x_ND) for s, x_ND in x.items()}
        y_hat_ND = self.decoder.target(t, codes, x) + self.decoder.b_dec[t]
        return y_hat_ND if self.W_skip is None else y_hat_ND + x[t] @ self.W_skip[t].T

    @property
    def streams(self) -> bool:
        """Whether `squared_error` goes target by target, which saves the memory of y_hat's graph."""
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

        The second has [N, D] for every target and uses all features. The backward pass needs it and
        one number per entry of the code. `only_features` ignores bias, skip and prefixes.
        """
        if only_features:
            return self.decoder.squared_error(code, x_NSD, y_NTD, weights, with_bias=False)
        if self.W_skip is not None:
            y_NTD = y_NTD - self.bypass(x_NSD)
        prefixes = self.shape.prefixes if len(self.shape.prefixes) > 1 else ()
        return self.decoder.squared_error(code, x_NSD, y_NTD, weights, prefixes)

    @_in_own_precision
    def decode_prefixes(self, code: Code, x_NSD: Tensor | None = None) -> list[Tensor]:
        """One reconstruction for each nested prefix, the last with all features.

        Prefix g uses the features below prefixes[g] of the same code. Each feature is decoded once;
        the reconstructions are running sums (Bussmann et al. 2025).
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
        """y_hat [N, T, D], with a gradient for the code's values only, not for decoder and skip."""
        constant = {name: p.detach() for name, p in self.decoder.named_parameters()}
        y_hat_NTD = functional_call(self.decoder, constant, (code, x_NSD))
        return y_hat_NTD + self.bypass(x_NSD).detach()

    def bypass(self, x_NSD: Tensor | None) -> Tensor:
        """The output of the linear skip: [N, T, D], or a scalar 0 without a skip."""
        if self.W_skip is None:
            return self.decoder.b_dec.new_zeros(())
        if x_NSD is None:
            raise ValueError(
                f"{a(self.kind)} with a skip decodes from its input too: decode(code, x)"
            )
        return torch.einsum("tod,ntd->nto", self.W_skip, x_NSD)

    def _own(self, x: Tensor) -> Tensor:
        """Activations in the parameters' precision; models may compute in half precision."""
        return x.to(self.encoder.W_enc.dtype)

    # --- training -----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Sets random unit decoder rows; an autoencoder's encoder starts as the decoder's transpose."""
        self.decoder.reset_parameters()
        with torch.no_grad():
            if self.reads_what_it_writes:
                rows = [
                    self.decoder.written(t, self.reads(t).start, slice(None))
                    for t in range(self.n_targets)
                ]
                shared = self.shape.link.one_code
                self.encoder.W_enc.copy_(torch.cat(rows, -1)[None] if shared else torch.stack(rows))
            else:
                nn.init.normal_(self.encoder.W_enc)
                norms = torch.linalg.vector_norm(self.encoder.W_enc, dim=-1, keepdim=True)
                self.encoder.W_enc.div_(norms)
            self.encoder.W_enc.mul_(self.shape.encoder_scale)

    @torch.no_grad()
    def initialise(self, y_NTD: Tensor) -> None:
        """Sets the decoder's bias to the mean of the targets, in training units."""
        self.decoder.b_dec.copy_(y_NTD.mean(0))

    def features(self, kept: torch.dtype | None = None) -> list[FeatureRows]:
        """The parameters' rows that the fused optimiser updates.

        `kept` is the dtype of the copy of W_enc for selection that the optimiser keeps up to date.
        """
        W_enc = self.encoder.W_enc
        n_rows = W_enc.shape[0] * W_enc.shape[1]
        shadow = None if kept is None else rounded.keep(W_enc, kept)
        return [FeatureRows(((W_enc, 0),), n_rows, shadow=shadow), *self.decoder.features()]

    def after_step(self) -> None:
        """Restores constrained parameters after an optimiser step."""
        self.decoder.after_step()
        self.sparsity.after_step()

    # --- inference form -----------------------------------------------------------------------

    @torch.no_grad()
    def inference_form(self, x_NSD: Callable[[], Iterable[Tensor]]) -> Dictionary:
        """A copy whose sparsity needs no batch, calibrated on the activations that `x_NSD()` yields."""
        frozen = copy.deepcopy(self).eval().requires_grad_(False)
        frozen.sparsity = frozen.sparsity.inference_form(
            lambda: (self.encoder.pre(self.read(x)) for x in x_NSD())
        )
        frozen.sparsity.eval().requires_grad_(False).to(self.encoder.W_enc.device)
        return frozen

    @torch.no_grad()
    def folded(self, input_scale_S: Tensor, output_scale_T: Tensor) -> Dictionary:
        """A copy that reads and writes raw activations; this one reads x * input_scale.

        W_enc stays, so the values of the code are in raw units, to which the sparsity is rescaled, and
        decoder rows are multiplied by the ratio of the scales. If the code is shared by several sites,
        or compares features across them, it keeps its training units, as sites may differ in scale.
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
