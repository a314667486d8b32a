"""A tiny language model, text for it, and a dictionary small enough to reason about."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals.context import Observation
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.sparsity.topk import TopK
from dictlearn.types import Batch, Code, Encoding
from tests.dictionaries import shaped

BOS, PAD = 3, 4
WIDTH, VOCAB = 16, 48


def _tiny_lm(seed: int = 0, layers: int = 2) -> LanguageModel:
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    return freeze(Qwen3ForCausalLM(config), name="tiny")


class ToyWindows:
    """Random windows: BOS first, every third with a second document in it, the last one padded."""

    def __init__(self, n: int = 8, context: int = 12, seed: int = 1):
        random = torch.Generator().manual_seed(seed)
        self.tokens_WP = torch.randint(5, VOCAB, (n, context), generator=random)
        self.tokens_WP[:, 0] = BOS
        self.tokens_WP[::3, context // 2] = BOS
        self.tokens_WP[-1, -3:] = PAD
        self.context = context

    def __len__(self) -> int:
        return len(self.tokens_WP)

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self.tokens_WP[torch.as_tensor(indices)]

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        tokens_BP = self.window_batch(indices)
        return (tokens_BP != BOS) & (tokens_BP != PAD)


class Toy(nn.Module):
    """TopK over random unit directions; `k=None` reconstructs its target exactly (the identity)."""

    kind, prefixes = "toy", ()

    def __init__(
        self,
        sources: tuple[str, ...] = ("resid_post.0",),
        targets: tuple[str, ...] = ("resid_post.0",),
        n_features: int = 24,
        k: int | None = 4,
        width: int = WIDTH,
    ):
        super().__init__()
        self.sources, self.targets = sources, targets
        self.n_features, self.k, self.width = n_features, k, width
        self.W = torch.nn.functional.normalize(torch.randn(n_features, width), dim=-1)

    def encode(self, x_NSD: Tensor) -> Code:
        k = self.k or 1
        values, features = (x_NSD @ self.W.T).abs().add(1e-6).flatten(0, 1).topk(k)
        features, order = features.sort(-1)
        row_starts = torch.arange(len(values) + 1) * k
        return Code(
            row_starts,
            features.flatten(),
            values.gather(1, order).flatten(),
            len(self.sources),
            self.n_features,
        )

    def decode(self, code: Code, x_NSD: Tensor) -> Tensor:
        if self.k is None:
            return x_NSD.clone()
        return code.dense() @ self.W

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    @property
    def code_sources(self) -> int:
        return len(self.sources)

    @property
    def layerwise(self) -> bool:
        return True

    @property
    def decoder(self) -> Toy:
        return self

    reads_what_it_writes = False  # features are the sizes of projections, of either sign

    def norms_by_target(self) -> Tensor:
        return torch.eye(len(self.sources))

    def lengths(self, source: int) -> Tensor:
        return self.W.norm(dim=1)

    def inner(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        return self.W[a[1]] @ self.W[b[1]].T * float(a[0] == b[0])

    def written(self, t: int, s: int, rows: slice) -> Tensor:
        return self.W[rows] * float(s == t)

    def reads(self, t: int) -> range:
        return range(t, t + 1)

    def encode_source(self, x_ND: Tensor, s: int) -> Encoding:
        single = Toy(self.sources[:1], self.targets[:1], self.n_features, self.k, self.width)
        single.W = self.W
        code = single.encode(x_ND[:, None])
        return Encoding(code, code, code.values)

    def decode_target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return self.decode(codes[t], x[t][:, None])[:, 0]


class Exact(nn.Module):
    """A model's own MLPs under a dictionary's interface; `leak` of each also goes to the next."""

    kind, n_features, layerwise, width, prefixes = "exact", 24, True, WIDTH, ()

    def __init__(self, lm: LanguageModel, n: int, leak: float = 0.0):
        super().__init__()
        self.sources = tuple(f"mlp_in.{i}" for i in range(n))
        self.targets = tuple(f"mlp_out.{i}" for i in range(n))
        self.mlps = [copy.deepcopy(layer.mlp) for layer in lm.model.model.layers[:n]]
        self.leak = leak
        self.some_code = Toy(self.sources, self.targets)

    def encode(self, x_NSD: Tensor) -> Code:
        return self.some_code.encode(x_NSD)

    def decode(self, code: Code, x_NSD: Tensor) -> Tensor:
        y = [mlp(x_NSD[:, t]) for t, mlp in enumerate(self.mlps)]
        shifted = [torch.zeros_like(y[0]), *y[:-1]]
        return torch.stack([a + self.leak * b for a, b in zip(y, shifted, strict=True)], 1)

    def reads(self, t: int) -> range:
        return range(t, t + 1)

    def encode_source(self, x_ND: Tensor, s: int) -> Encoding:
        return self.some_code.encode_source(x_ND, s)

    def decode_target(self, t: int, codes: Mapping[int, Code], x: Mapping[int, Tensor]) -> Tensor:
        return self.mlps[t](x[t])


def _layers_of(n: int, link: str = "diagonal", width: int = WIDTH, **shape) -> Dictionary:
    """Transcoders of n layers with random weights, at a scale that disturbs a tiny model."""
    names = [tuple(f"{end}.{i}" for i in range(n)) for end in ("mlp_in", "mlp_out")]
    kind = {"diagonal": "plt", "lower": "clt", "shared": "crosscoder"}[link]
    options = {"n_features": 24, "k": 4.0, "link": link, **shape}
    dictionary = Dictionary(shaped(kind, *names, width=width, **options), partial(TopK, k=4))
    with torch.no_grad():
        dictionary.encoder.b_enc.normal_(std=0.1)
        dictionary.decoder.b_dec.normal_(std=0.1)
    return dictionary.eval().requires_grad_(False)


def _code_of(dense_NSF: Tensor) -> Code:
    """The CSR form of a dense code."""
    n, s, f = dense_NSF.shape
    flat = dense_NSF.reshape(n * s, f)
    rows, features = flat.nonzero(as_tuple=True)
    row_starts = torch.zeros(n * s + 1, dtype=torch.int64)
    row_starts[1:] = torch.bincount(rows, minlength=n * s).cumsum(0)
    return Code(row_starts, features, flat[rows, features], s, f)


def _observation(
    y_NTD: Tensor,
    y_hat: dict[str, Tensor],
    valid_N: Tensor | None = None,
    dense_NSF: Tensor | None = None,
    context: int | None = None,
) -> Observation:
    """An observation of N tokens without a model: windows of `context` positions, no padding."""
    n = len(y_NTD)
    context = context or n
    tokens_BP = torch.arange(n).view(-1, context)
    positions_N = torch.arange(n) % context
    valid_N = torch.ones(n, dtype=torch.bool) if valid_N is None else valid_N
    code = _code_of(torch.ones(n, 1, 1) if dense_NSF is None else dense_NSF)
    batch = Batch(y_NTD, None, tokens_BP.flatten(), positions_N)
    text_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    return Observation(tokens_BP, text_BP, valid_N, batch, code, y_hat)


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return _tiny_lm()


@pytest.fixture(scope="session")
def deep_lm() -> LanguageModel:
    """Four layers: enough for one of them, half of them and all of them to differ."""
    return _tiny_lm(layers=4)


@pytest.fixture
def layers_of() -> Callable[..., Dictionary]:
    return _layers_of


@pytest.fixture
def exact() -> type[Exact]:
    return Exact


@pytest.fixture(scope="session")
def windows() -> ToyWindows:
    return ToyWindows()


@pytest.fixture(scope="session")
def train_windows() -> ToyWindows:
    return ToyWindows(40, seed=2)


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def code_of() -> Callable[[Tensor], Code]:
    return _code_of


@pytest.fixture
def observation() -> Callable[..., Observation]:
    return _observation
