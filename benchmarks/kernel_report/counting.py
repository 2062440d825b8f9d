"""The bytes and the arithmetic of a kernel, counted by running programs of it without memory.

Triton's interpreter calls one method of a builder for each operation. The builder here counts: a
load or store adds the bytes of its unmasked lanes, a floating-point operation its elements. Nothing
is stored, loads from tensors without memory give zeros, and floating-point values are not computed,
since no address or trip count depends on them. Integers are, and tensors with memory (positions,
where documents begin) are read. A launch of any size can thus be counted as it was recorded, and
each address is checked against the tensor it was made from.

What counts as arithmetic is said in docs/kernels.md. This module needs TRITON_INTERPRET=1.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

from kernel_report import shortcuts
from litmegalodon.ops.launch import Launch

# Tensors lie this far apart, so that an address names its tensor.
SPACING = 1 << 44

ORDINARY = (
    *("fadd", "fsub", "fmul"),
    *("minimumf", "maximumf", "minnumf", "maxnumf"),
)
# One instruction of the special function unit each, whatever else the device adds to it.
SPECIAL_BINARY = ("fdiv", "frem", "precise_divf")
SPECIAL_UNARY = (
    *("exp", "exp2", "log", "log2", "sin", "cos"),
    *("sqrt", "precise_sqrt", "rsqrt", "erf"),
)
COMPARISONS = {"LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal}
COMPARISONS |= {"EQ": np.equal, "NE": np.not_equal}
DOT_PASSES = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}


class AddressError(Exception):
    """An unmasked lane of a load or store lies outside the tensor it was addressed from."""


class CountingBuilder(InterpreterBuilder):
    """An interpreter's builder that counts instead of computing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.tensors: dict[int, Memory] = {}
        self.times = 1

    def add(self, name: str, amount: int) -> None:
        self.counts[name] += int(amount) * self.times

    def arithmetic(self, dtype: tl.dtype, elements: int) -> None:
        self.add("fp64" if dtype.scalar == tl.float64 else "fp32", elements)

    # memory

    def access(self, kind: str, pointers: TensorHandle, mask: TensorHandle) -> "Memory":
        """Add the bytes of the unmasked lanes and check where they lie."""
        lanes = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data if lanes.all() else pointers.data[lanes]
        if addresses.size == 0:
            return NOWHERE
        first, last = int(addresses.min()), int(addresses.max())
        memory = self.tensors.get(first // SPACING, NOWHERE)
        begin = first % SPACING
        end = last - first + begin + size
        if end > memory.extent:
            raise AddressError(
                f"{kind} of bytes {begin} to {end} of {memory.name}, which has {memory.extent}"
            )
        self.add(kind, addresses.size * size)
        self.add(f"{kind} {memory.name}", addresses.size * size)
        return memory

    def create_masked_load(self, ptrs, mask, other, cache_modifier, eviction_policy, is_volatile):
        memory = self.access("load", ptrs, mask)
        dtype = ptrs.get_element_ty()
        if memory.values is None or is_float(dtype):
            return zeros(dtype, ptrs.data.shape)
        places = ptrs.data % SPACING // memory.values.itemsize
        lanes = mask.data.astype(bool)
        values = memory.values[np.where(lanes, places, 0)].astype(_get_np_dtype(dtype))
        return TensorHandle(np.where(lanes, values, 0 if other is None else other.data), dtype)

    def create_masked_store(self, ptrs, value, mask, cache_modifier, eviction_policy):
        self.access("store", ptrs, mask)

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        self.access("load", ptr, mask)
        self.access("store", ptr, mask)
        self.add("atomic", np.broadcast_to(mask.data.astype(bool), ptr.data.shape).sum())
        return zeros(val.dtype, ptr.data.shape)

    def create_atomic_cas(self, ptr, cmp, val, sem, scope):
        mask = TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1)
        return self.create_atomic_rmw(None, ptr, val, mask, sem, scope)

    # arithmetic

    def create_fma(self, x, y, z):
        result = zeros(z.dtype, shape_of(x, y, z))
        self.arithmetic(z.dtype, 2 * result.data.size)
        return result

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        kind = str(input_precision).rsplit(".", 1)[-1].lower()
        bits = a.dtype.scalar.primitive_bitwidth
        passes = DOT_PASSES.get(kind, 1)
        if bits <= 16:
            kind, passes = "bf16", 1
        elif bits == 64 or kind == "ieee":
            kind = "fp64" if bits == 64 else "fp32"
        else:
            kind = kind.split("x")[0]
        name = kind if kind.startswith("fp") else f"dot {kind}"
        self.add(name, 2 * passes * d.data.size * a.data.shape[-1])
        return zeros(d.dtype, d.data.shape)

    # values

    def cast_impl(self, src, dst_type):
        if is_float(src.dtype) or is_float(dst_type):
            return zeros(dst_type, src.data.shape)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        return zeros(dst_type, src.data.shape)

    def create_bitcast(self, src, dst_type):
        return (
            self.cast_impl(src, dst_type)
            if is_float(dst_type)
            else super().create_bitcast(src, dst_type)
        )

    def create_fabs(self, arg):
        return arg

    def create_select(self, cond, lhs, rhs):
        if is_float(rhs.dtype):
            return zeros(rhs.dtype, shape_of(cond, lhs, rhs))
        return super().create_select(cond, lhs, rhs)

    def create_clampf(self, arg, lo, hi, propagate_nans):
        result = zeros(arg.dtype, shape_of(arg, lo, hi))
        self.arithmetic(arg.dtype, 2 * result.data.size)
        return result

    def create_splat(self, ret_ty, arg):
        if is_float(arg.dtype):
            return zeros(arg.dtype, tuple(ret_ty.shape))
        return super().create_splat(ret_ty, arg)


@dataclass(frozen=True)
class Memory:
    """An argument's name, bytes and, where it has memory, elements."""

    name: str
    extent: int
    values: np.ndarray | None = None


NOWHERE = Memory("no tensor", 0)


def _ordinary(self, lhs, rhs):
    result = zeros(lhs.dtype, shape_of(lhs, rhs))
    self.arithmetic(lhs.dtype, result.data.size)
    return result


def _special(self, *operands):
    result = _ordinary(self, operands[0], operands[-1])
    self.add("special", result.data.size)
    return result


def _rounding(self, arg):
    return arg


def _comparison(compare):
    def method(self, lhs, rhs):
        answer = compare(np.float32(0), np.float32(0))
        return TensorHandle(np.broadcast_to(answer, shape_of(lhs, rhs)), lhs.dtype.scalar)

    return method


for _name in ORDINARY:
    setattr(CountingBuilder, f"create_{_name}", _ordinary)
for _name in (*SPECIAL_BINARY, *SPECIAL_UNARY):
    setattr(CountingBuilder, f"create_{_name}", _special)
for _name in ("floor", "ceil"):
    setattr(CountingBuilder, f"create_{_name}", _rounding)
for _name, _compare in COMPARISONS.items():
    for _order in "OU":
        setattr(CountingBuilder, f"create_fcmp{_order}{_name}", _comparison(_compare))


def is_float(dtype: tl.dtype) -> bool:
    return not isinstance(dtype, tl.pointer_type) and dtype.scalar.is_floating()


_zeros: dict[tuple, TensorHandle] = {}


def zeros(dtype: tl.dtype, shape: Sequence[int]) -> TensorHandle:
    """Zeros of a dtype; a float's take no memory, an integer's can be written to."""
    scalar = dtype.scalar
    if not is_float(dtype):
        return TensorHandle(np.zeros(shape, _get_np_dtype(scalar)), scalar)
    key = scalar.name, tuple(shape)
    if key not in _zeros:
        values = np.broadcast_to(np.zeros((), _get_np_dtype(scalar)), shape)
        _zeros[key] = TensorHandle(values, scalar)
    return _zeros[key]


def shape_of(*operands: TensorHandle) -> tuple[int, ...]:
    return np.broadcast_shapes(*(operand.data.shape for operand in operands))


def _combine(op: Any, inputs: tuple, combinations: int) -> None:
    """Count a reduction's or scan's combining function, run once on scalars."""
    builder.times *= combinations
    scalars = [op.to_tensor(np.zeros((1,), i.handle.data.dtype), i.dtype.scalar) for i in inputs]
    op.combine_fn.fn(*scalars, *scalars)
    builder.times //= combinations


def _reduce(self: interpreter.ReduceOps, inputs: tuple):
    shape = inputs[0].handle.data.shape
    axis = self.axis
    if not any(is_float(i.dtype) for i in inputs):
        return _integer_reduce(self, inputs)
    if axis is None:
        reduced = (1,) * len(shape) if self.keep_dims else ()
    else:
        axis %= len(shape)
        reduced = shape[:axis] + (1,) * self.keep_dims + shape[axis + 1 :]
    combinations = math.prod(shape) - math.prod(reduced)
    if combinations:
        _combine(self, inputs, combinations)
    return [self.to_tensor(np.zeros(reduced), i.dtype.scalar) for i in inputs]


def _scan(self: interpreter.ScanOps, inputs: tuple):
    shape = inputs[0].handle.data.shape
    if not any(is_float(i.dtype) for i in inputs):
        return _integer_scan(self, inputs)
    combinations = math.prod(shape) - math.prod(shape) // shape[self.axis]
    if combinations:
        _combine(self, inputs, combinations)
    return [self.to_tensor(np.zeros(shape), i.dtype.scalar) for i in inputs]


class _Nothing:
    def restore(self) -> None:
        pass


builder = CountingBuilder()
interpreter.interpreter_builder = builder
interpreter.interpreter_semantic.builder = builder
_integer_reduce, interpreter.ReduceOps.apply_impl = interpreter.ReduceOps.apply_impl, _reduce
_integer_scan, interpreter.ScanOps.apply_impl = interpreter.ScanOps.apply_impl, _scan


def _patch_once() -> None:
    """Put the interpreter's functions into triton.language for good, and look dtypes up once.

    The interpreter does so anew at each call of each function, which takes most of its time.
    """

    class Both:
        __globals__ = {"tl": tl, "core": tl.core}  # noqa: RUF012

    interpreter._patch_lang(Both)
    interpreter._patch_lang = lambda fn: _Nothing()
    by_name: dict[str, np.dtype] = {}

    def numpy_dtype(dtype: tl.dtype) -> np.dtype:
        if isinstance(dtype.scalar, tl.pointer_type):
            return _get_np_dtype(dtype)
        name = dtype.scalar.name
        if name not in by_name:
            by_name[name] = _get_np_dtype(dtype.scalar)
        return by_name[name]

    interpreter._get_np_dtype = numpy_dtype


_patch_once()
if os.environ.get("COUNT_IN_FULL") != "1":
    shortcuts.take(builder, zeros)


class Programs:
    """A recorded launch whose programs can be counted one at a time."""

    def __init__(self, launch: Launch) -> None:
        kernel = launch.kernel
        config = launch.configs[0]
        tiles = dict(config.tiles)
        grid = launch.grid(tiles) if callable(launch.grid) else launch.grid
        self.grid = (*grid, 1, 1)[:3]
        self.run = kernel.rewrite()
        self.tensors = {}
        constants = {
            name
            for name, annotation in kernel.fn.__annotations__.items()
            if "constexpr" in str(annotation)
        }
        self.arguments = {}
        for position, (name, value) in enumerate((launch.arguments | tiles).items()):
            if isinstance(value, torch.Tensor):
                self.tensors[position + 1] = memory(name, value)
                value = pointer(value, (position + 1) * SPACING)
            elif name not in constants and value is not None:
                value = interpreter._implicit_cvt(value)
            self.arguments[name] = value

    def __call__(self, index: tuple[int, int, int]) -> Counter[str]:
        """Count one program.

        Raises:
            AddressError: an access outside its tensor.
        """
        builder.counts, builder.tensors, builder.times = Counter(), self.tensors, 1
        builder.set_grid_dim(*self.grid)
        builder.set_grid_idx(*index)
        self.run(**self.arguments)
        return builder.counts


def memory(name: str, tensor: torch.Tensor) -> Memory:
    """What a tensor's kernel can reach: from its first element to its last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    elements = sum((n - 1) * stride for n, stride in pairs) + 1 if tensor.numel() else 0
    values = None
    if tensor.device.type == "cpu" and not tensor.is_floating_point():
        values = tensor.as_strided((elements,), (1,)).numpy()
    return Memory(name, elements * tensor.element_size(), values)


def pointer(tensor: torch.Tensor, address: int) -> tl.tensor:
    dtype = tl.str_to_ty(interpreter.triton.runtime.jit.mangle_type(tensor), None)
    return tl.tensor(TensorHandle(np.array([address], np.uint64), dtype), dtype)
