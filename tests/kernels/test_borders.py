"""Every function that hands Python's arguments to a compiled loop refuses what does not fit together.

A loop trusts its arguments, and writes past the end of what is too short: that ends a process, or worse.
The functions are found by reading the sources, so that one that comes later is missed here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import dictlearn_kernels.compiled
import pytest
import torch
from dictlearn_kernels import csr, fixed_point, tiles
from dictlearn_kernels.decode_error import compiled as decode_error
from dictlearn_kernels.fused_adam import FeatureRows, Step
from dictlearn_kernels.fused_adam import compiled as fused_adam
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.threshold_encode import compiled as threshold
from dictlearn_kernels.topk_encode import compiled as topk
from dictlearn_kernels.transforms import compiled as transforms
from dictlearn_kernels.weight_grad import Product, RowGradient
from torch import Tensor

ROOT = Path(dictlearn_kernels.compiled.__file__).parent
DECORATORS = {"loop", "sums", "fused"}
# Their arguments were made, and checked, by one of the functions that are tested; or go nowhere.
NOT_CALLED_WITH_TENSORS = {"transforms.compiled.serves"}

R, D, C = 200, 64, 96
ROWS = torch.tensor([0, 2, 3])
COLUMNS = torch.tensor([0, 3, 1])
VALUES = torch.ones(3)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def product(x=(R, D), W=(C, D), b=(C,)) -> tuple[Tensor, Tensor, Tensor]:
    return numbers(*x), numbers(*W), numbers(*b)


def tiled(**changed) -> tiles.Tiled:
    return tiles.exact(*product())._replace(**changed)


def decode(y=(2, D), W=(4, D), bias=None, starts=ROWS, values=VALUES) -> None:
    bias_SD = None if bias is None else numbers(*bias)
    decode_error.decode_error(starts, COLUMNS, values, numbers(*W), numbers(*y), bias_SD, True)


def moved(
    form: str = "float32", rows: int = 4, start: int = 0, g=(2, D), along=(4,), **moments
) -> None:
    """Features of 4 rows of weights [rows, D], with moments of which some are changed."""
    weights = numbers(rows, D)
    pattern = Pattern(ROWS, COLUMNS, 4)
    gradient = RowGradient(None, [Product(0, pattern, VALUES, numbers(*g))], D)
    stored = FORMS[form].zeros(weights)
    stored = {k: moments.get(k, v) for k, v in stored.items()}
    features = FeatureRows(((weights, start),), 4, "concat")
    step = Step(1, 1e-3, 0.9, 0.999, 1e-8)
    fused_adam.measure(features, [gradient])
    given = FORMS[form](stored, D, 0)
    fused_adam.update(features, [gradient], [given], numbers(*along), [step], 1.0)


def molt(
    x=(2, D), maps=((3, 4, D), (1, 8, D)), V=None, g=None, hidden=None, backward=False
) -> None:
    pattern = Pattern(ROWS, COLUMNS, 4)
    U = [numbers(*shape) for shape in maps]
    V = [numbers(*shape) for shape in V or maps]
    if not backward:
        transforms.forward(pattern, VALUES, numbers(*x), U, V)
        return
    into = [[torch.empty_like(one) for one in side] for side in (U, V)]
    kept = None if hidden is None else numbers(hidden)
    g_RD = numbers(*(g or x))
    transforms.backward(pattern, VALUES, numbers(*x), U, V, kept, g_RD, True, *into)


WRONG: dict[str, list[Callable[[], object]]] = {
    "csr.by_column": [
        lambda: csr.by_column(torch.tensor([0, 5]), 5),
        lambda: csr.by_column(torch.tensor([-3, 1]), 5),
        lambda: csr.by_column(torch.zeros(2, 2, dtype=torch.int64), 5),
    ],
    "csr.between": [
        lambda: csr.between(ROWS, COLUMNS, 0, 4, 1),
        lambda: csr.between(ROWS, COLUMNS, 0, 1, 3),
        lambda: csr.between(torch.tensor([0, 2, 9]), COLUMNS, 0, 4, 3),
    ],
    "csr.interleaved": [
        lambda: csr.interleaved([(ROWS, COLUMNS, VALUES), (ROWS[:2], COLUMNS, VALUES)]),
        lambda: csr.interleaved([(ROWS, COLUMNS, VALUES), (ROWS, COLUMNS[:2], VALUES)]),
        lambda: csr.interleaved([(ROWS, COLUMNS, VALUES[:1]), (ROWS, COLUMNS, VALUES)]),
    ],
    "decode_error.compiled.decode_error": [
        lambda: decode(y=(3, D)),
        lambda: decode(y=(2, D - 1)),
        lambda: decode(bias=(1, D + 1)),
        lambda: decode(bias=(0, D)),
        lambda: decode(values=VALUES[:2]),
        lambda: decode(starts=torch.tensor([0, 2, 7])),
        lambda: decode(values=VALUES.double()),
    ],
    "fixed_point.bounded": [
        lambda: fixed_point.bounded(*product(W=(C, D - 8))),
        lambda: fixed_point.bounded(*product(b=(C - 1,))),
        lambda: fixed_point.bounded(*product(), numbers(C + 1)),
        lambda: fixed_point.bounded(numbers(R), numbers(C, D), numbers(C)),
    ],
    "fused_adam.compiled.measure": [
        lambda: moved(rows=3),
        lambda: moved(start=1),
        lambda: moved(g=(2, D + 1)),
        lambda: moved(g=(3, D)),
    ],
    "fused_adam.compiled.update": [
        lambda: moved(along=(3,)),
        lambda: moved(exp_avg=numbers(3, D)),
        lambda: moved(exp_avg_sq=numbers(5, D)),
        lambda: moved(exp_avg=numbers(4, D).double()),
        lambda: moved("bfloat16", exp_avg=numbers(4, D)),
        lambda: moved("8bit", exp_avg_sq=torch.zeros(4, D, dtype=torch.int8)),
        lambda: moved("8bit", exp_avg_scale=numbers(3)),
    ],
    "threshold_encode.compiled.above": [
        lambda: threshold.above(numbers(R, C), numbers(C - 1)),
        lambda: threshold.above(numbers(C), 0.0),
    ],
    "threshold_encode.compiled.threshold_encode": [
        lambda: threshold.threshold_encode(*product(W=(C, D + 1)), 0.0),
        lambda: threshold.threshold_encode(*product(), numbers(C - 1)),
    ],
    "threshold_encode.compiled.above_fixed": [
        lambda: threshold.above_fixed(*product(b=(C + 1,)), 0.0),
        lambda: threshold.above_fixed(*product(), numbers(C - 1)),
    ],
    "tiles.exact": [
        lambda: tiles.exact(*product(x=(R, D - 1))),
        lambda: tiles.exact(*product(b=(C - 1,))),
    ],
    "tiles.strips": [
        lambda: list(tiles.strips(tiled(spread_R=numbers(1).numpy()), 0, 1)),
        lambda: list(tiles.strips(tiled(W_PDC=numbers(1, D - 2, tiles.COLUMNS).numpy()), 0, 1)),
        lambda: list(tiles.strips(tiled(), 0, 10_000)),
    ],
    "tiles.Strip.evaluate": [
        lambda: next(tiles.strips(tiled(), 0, 1))
        ._replace(starts=torch.full((tiles.ROWS + 1,), 10**9).numpy())
        .evaluate(),
        lambda: next(tiles.strips(tiled(), 0, 1))._replace(rows=slice(0, 90)).evaluate(),
    ],
    "topk_encode.compiled.topk_encode": [
        lambda: topk.topk_encode(*product(W=(C, D - 2)), 4),
        lambda: topk.topk_encode(*product(), 0),
    ],
    "topk_encode.compiled.topk_encode_fixed": [
        lambda: topk.topk_encode_fixed(*product(b=(C - 2,)), 4),
    ],
    "topk_encode.compiled.largest": [
        lambda: topk.largest(numbers(C), 4),
        lambda: topk.largest(numbers(R, C).double(), 4),
        lambda: topk.largest(numbers(R, C), -1),
    ],
    "topk_encode.compiled.largest_in_tiles": [
        lambda: topk.largest_in_tiles(tiled(column_terms=numbers(1, 1, 8).numpy()), 4),
        lambda: topk.largest_in_tiles(tiled(operands=product(x=(R + 99, D))), 4),
    ],
    "transforms.compiled.forward": [
        lambda: molt(x=(3, D)),
        lambda: molt(x=(2, 2 * D)),
        lambda: molt(maps=((3, 4, D),)),
        lambda: molt(V=((3, 4, D), (1, 4, D))),
    ],
    "transforms.compiled.backward": [
        lambda: molt(x=(3, D), backward=True),
        lambda: molt(g=(2, 2 * D), backward=True),
        lambda: molt(hidden=5, backward=True),
        lambda: molt(V=((1, 4, D), (3, 8, D)), backward=True),
    ],
}  # fmt: skip


def entries() -> Iterator[str]:
    """module.function for each public function or method from which a compiled loop is reached."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions: dict[str, ast.FunctionDef] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                functions |= {f"{node.name}.{one.name}": one for one in methods}
        reaching = {
            name
            for name, node in functions.items()
            if any(isinstance(d, ast.Name) and d.id in DECORATORS for d in node.decorator_list)
        }
        loops = set(reaching)
        while True:
            more = {
                name
                for name, node in functions.items()
                if any(calls(node, one) for one in reaching)
            } - reaching
            if not more:
                break
            reaching |= more
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in reaching - loops:
            if not any(part.startswith("_") for part in name.split(".")):
                yield f"{module}.{name}"


def calls(node: ast.AST, name: str) -> bool:
    """Whether a function names another one of its module, or a method by its last name."""
    *of_class, last = name.split(".")
    if of_class:
        return any(isinstance(part, ast.Attribute) and part.attr == last for part in ast.walk(node))
    return any(isinstance(part, ast.Name) and part.id == last for part in ast.walk(node))


def test_every_border_is_listed_here():
    found = set(entries()) - NOT_CALLED_WITH_TENSORS
    assert found == WRONG.keys()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{name}-{i}")
        for name, calls in WRONG.items()
        for i, call in enumerate(calls)
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_what_fits_is_taken():
    """Nothing above is refused for another reason than the one that was meant."""
    decode()
    decode(bias=(1, D))
    for form in FORMS:
        moved(form)
    molt()
    molt(backward=True)
    list(tiles.strips(tiled(), 0, 1))
    topk.topk_encode(*product(), 4)
    threshold.threshold_encode(*product(), numbers(C))
    assert fixed_point.bounded(*product(), numbers(C)) is not None
