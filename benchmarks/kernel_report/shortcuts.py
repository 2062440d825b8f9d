"""Sums, products and casts, counted without Triton's detour.

In the interpreter an operator checks types, promotes, broadcasts and builds tensors in some thirty
calls. Where both operands have one dtype nothing of it matters to a count. A test compares the
counts with and without.
"""

import math
from collections.abc import Callable

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

OPERATORS = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply},
    **{"radd": np.add, "rsub": lambda a, b: np.subtract(b, a), "rmul": np.multiply},
}
INTEGERS = {"int32": np.dtype(np.int32), "int64": np.dtype(np.int64)}


def take(builder: InterpreterBuilder, zeros: Callable) -> None:
    """Replace the operators of `tl.tensor`, whose results are `zeros(dtype, shape)`."""
    # Addresses are checked where they are used.
    builder.options = InterpreterOptions(sanitize_overflow=False)
    made: dict[tuple, tl.tensor] = {}

    def result(dtype: tl.dtype, shape: tuple[int, ...], block: bool) -> tl.tensor:
        key = dtype.name, shape, block
        if key not in made:
            kind = tl.block_type(dtype, list(shape)) if block else dtype
            made[key] = tl.tensor(zeros(dtype, shape), kind)
        return made[key]

    def shorten(name: str, of_integers: Callable) -> None:
        in_full = getattr(tl.tensor, name)

        def integers(self, other):
            values, kind = self.handle.data, INTEGERS.get(self.dtype.name)
            if kind is None or values.dtype != kind:
                return in_full(self, other)
            if type(other) is int and -(2**31) <= other < 2**31:
                found = of_integers(values, kind.type(other))
            elif type(other) is tl.tensor and other.type == self.type:
                found = of_integers(values, other.handle.data)
            else:
                return in_full(self, other)
            return tl.tensor(TensorHandle(found, self.dtype), self.type)

        def operator(self, other):
            dtype, shape = self.dtype, self.handle.data.shape
            block = self.type.is_block()
            if not dtype.is_floating():
                return integers(self, other)
            if type(other) is tl.tensor:
                other_shape = other.handle.data.shape
                if other.dtype.name != dtype.name or len(other_shape) != len(shape):
                    return in_full(self, other)
                if other_shape != shape:
                    shape = np.broadcast_shapes(shape, other_shape)
                block = block or other.type.is_block()
            elif type(other) not in (int, float):
                return in_full(self, other)
            builder.arithmetic(dtype, math.prod(shape))
            return result(dtype, shape, block)

        setattr(tl.tensor, name, operator)

    for name, of_integers in OPERATORS.items():
        shorten(f"__{name}__", of_integers)

    cast_in_full = tl.tensor.to

    def to(self, dtype, *rest, **named):
        dtype = dtype.value if isinstance(dtype, tl.constexpr) else dtype
        if rest or named or not self.dtype.is_floating() or not dtype.is_floating():
            return cast_in_full(self, dtype, *rest, **named)
        return result(dtype, self.handle.data.shape, self.type.is_block())

    tl.tensor.to = to
