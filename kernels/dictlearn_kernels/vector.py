"""Vectors of numbers in LLVM's words, for instructions that numba has no name for.

Functions here add instructions to a `builder`. An address is an int64 value, an offset counts bytes, and
a `kind` is an LLVM type. The micro-kernels (`microkernel`, `transforms.microkernel`) are built of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from dictlearn_kernels import compiled

LANES = compiled.lanes()  # float32 numbers of a vector
# The sums of a tile stay in registers. 6 rows of 2 vectors, the vectors they are multiplied with and one
# row's number fill AVX2's 16 registers; 12 rows of 2 fill 27 of AVX-512's 32.
ROWS, COLUMNS = {8: 6, 16: 12}[LANES], 2 * LANES
LINE_BYTES = 64  # a line of the cache

BIT, INT, LONG, FLOAT = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
_BYTES = ir.IntType(8).as_pointer()
# The arguments of llvm.prefetch: a read, into a core's own second cache, of data.
_READ, _SECOND_CACHE, _DATA = 0, 2, 1


def number(n: int) -> Any:
    """An int64 constant."""
    return ir.Constant(LONG, n)


def zeros(kind: Any) -> Any:
    """A vector constant."""
    return ir.Constant(kind, [0.0 if kind.element == FLOAT else 0] * kind.count)


def pointer(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    if offset is not None:
        address = builder.add(address, number(offset) if isinstance(offset, int) else offset)
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Any, address: Any, kind: Any, offset: Any = None) -> Any:
    return builder.load(pointer(builder, address, kind, offset), align=4)


def store(builder: Any, value: Any, address: Any, offset: Any = None) -> None:
    builder.store(value, pointer(builder, address, value.type, offset), align=4)


def broadcast(builder: Any, value: Any, kind: Any) -> Any:
    """A vector that has one number in all lanes."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    lanes = ir.Constant(ir.VectorType(INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, undefined, lanes)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU has such an instruction."""
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two integers, lane by lane."""
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def fold(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes combined into one number: the upper half with the lower one, until one lane is left."""
    n = vector.type.count
    half = n // 2
    while half:
        lanes = [min(lane + half, n - 1) for lane in range(n)]
        mask = ir.Constant(ir.VectorType(INT, n), lanes)
        vector = combine(vector, builder.shuffle_vector(vector, vector, mask))
        half //= 2
    return builder.extract_element(vector, ir.Constant(INT, 0))


class Step:
    """One step of a loop: its number `i`, the `values` of the step before, and what they become."""

    def __init__(self, i: Any, values: Sequence[Any]):
        self.i, self.values = i, values
        self.results: Sequence[Any] = ()


@contextmanager
def steps(builder: Any, n: Any, initial: Sequence[Any] = (), step: int = 1) -> Iterator[Step]:
    """Builds a loop whose body is the `with` block: i = 0, step, ... below n, at least once.

    `initial` are the values before the first step. The body sets the step's `results`, one for each,
    which are the next step's `values`, and the loop's results after the last one.
    """
    before = builder.block
    body, after = (builder.append_basic_block(name) for name in ("body", "after"))
    builder.branch(body)
    builder.position_at_end(body)
    i = builder.phi(LONG)
    state = Step(i, [builder.phi(value.type) for value in initial])
    yield state
    following = builder.add(i, number(step))
    carried = zip(
        (i, *state.values), (number(0), *initial), (following, *state.results), strict=True
    )
    for phi, first, result in carried:
        phi.add_incoming(first, before)
        phi.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, n), body, after)
    builder.position_at_end(after)


def prefetch(builder: Any, address: Any) -> None:
    """Has the line of the cache at an address come nearer, without waiting for it."""
    function = ir.FunctionType(ir.VoidType(), [_BYTES, INT, INT, INT])
    call = builder.module.declare_intrinsic("llvm.prefetch", [_BYTES], function)
    how = [ir.Constant(INT, n) for n in (_READ, _SECOND_CACHE, _DATA)]
    builder.call(call, [builder.inttoptr(address, _BYTES), *how])


@intrinsic
def fetch(typingctx, address):
    """`prefetch` for a compiled loop."""

    def generate(context, builder, signature, arguments):
        prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate
