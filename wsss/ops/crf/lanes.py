"""Vectors of float32 lanes for kernels compiled by numba.

A kernel takes a `zero`, a `Vector(n)`, and is compiled for vectors of its width. In compiled code a Vector is n numbers; in Python it only
stores their number.
"""

from collections.abc import Callable
from types import NoneType

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.base import BaseContext
from numba.core.datamodel import DataModelManager
from numba.core.types import Array, Type
from numba.core.typing import Context, Signature
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from wsss.ops.crf.compiling import Intrinsic, Unboxing, Values, returns

ROUND = np.float32(1.5 * 2**23)  # adding and subtracting it rounds |x| < 2^22, half to even
# exp(x) = 2^n exp(r), |r| <= ln(2) / 2: a polynomial through the Chebyshev nodes, relative error below 1e-7
_EXP = (
    np.polynomial.Chebyshev.interpolate(np.exp, 5, [-np.log(2) / 2, np.log(2) / 2])
    .convert(kind=np.polynomial.Polynomial)
    .coef
)


class Lanes(Type):
    """Numba type of `n` float32 lanes, held in vectors of 8 lanes or fewer; `n` above 8 is a multiple of 8.

    Kernels take a `zero` of this type and are compiled for its width.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(name=f"Lanes({n})")

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(ir.FloatType(), min(self.n, 8))

    @property
    def parts(self) -> int:
        return max(self.n // 8, 1)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: DataModelManager, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.ArrayType(lanes.vector, lanes.parts))


def _split(builder: ir.IRBuilder, lanes: Lanes, value: ir.Value) -> list[ir.Value]:
    return [builder.extract_value(value, part) for part in range(lanes.parts)]


def _join(builder: ir.IRBuilder, lanes: Lanes, vectors: list[ir.Value]) -> ir.Value:
    value = ir.Constant(ir.ArrayType(lanes.vector, lanes.parts), ir.Undefined)
    for part, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, part)
    return value


def _constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector_type, [value] * vector_type.count)


def _shuffled(builder: ir.IRBuilder, vector: ir.Value, order: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder: ir.IRBuilder, vector_type: ir.VectorType, scalar: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.IntType(32)(0))
    return _shuffled(builder, one, [0] * vector_type.count)


def _scaled_sum(builder: ir.IRBuilder, a: ir.Value, x: ir.Value, b: ir.Value) -> ir.Value:
    return builder.fadd(a, builder.fmul(x, b, flags=("contract",)), flags=("contract",))


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _places(
    context: BaseContext, builder: ir.IRBuilder, lanes: Lanes, array_type: Array, array: ir.Value, index: ir.Value
) -> list[ir.Value]:
    data = context.make_array(array_type)(context, builder, array).data
    parts = [builder.gep(data, [builder.add(index, index.type(8 * part))]) for part in range(lanes.parts)]
    return [builder.bitcast(place, lanes.vector.as_pointer()) for place in parts]


class Vector:
    """`n` float32 lanes. A kernel called with a Vector gets zeros, and is compiled for vectors of this width."""

    def __init__(self, n: int) -> None:
        self.lanes = Lanes(n)


@typeof_impl.register(Vector)
def _typeof_vector(value: Vector, context: Context) -> Lanes:
    return value.lanes


@unbox(Lanes)
def _unbox_vector(lanes: Lanes, value: ir.Value, unboxing: Unboxing) -> NativeValue:
    return NativeValue(_join(unboxing.builder, lanes, [_constant(lanes.vector, 0.0)] * lanes.parts))


V1, V2, V4, V8, V24 = Vector(1), Vector(2), Vector(4), Vector(8), Vector(24)


@returns(int)
def width(typing_context: Context, zero: Lanes) -> Intrinsic:
    """The number of lanes, a constant to the compiler."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        return context.get_constant(types.intp, zero.n)

    return types.intp(zero), generate


@returns(Vector)
def load(typing_context: Context, zero: Lanes, array: Array, index: Type) -> Intrinsic:
    """The lanes that start at `array[index]`."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        vectors = []
        for place in _places(context, builder, zero, array, *arguments[1:]):
            vectors.append(builder.load(place))
            vectors[-1].align = 4
        return _join(builder, zero, vectors)

    return zero(zero, array, types.intp), generate


@returns(NoneType)
def store(typing_context: Context, array: Array, index: Type, lanes: Lanes) -> Intrinsic:
    """Write the lanes to `array[index:]`."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        places = _places(context, builder, lanes, array, *arguments[:2])
        for place, vector in zip(places, _split(builder, lanes, arguments[2]), strict=True):
            builder.store(vector, place).align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@returns(NoneType)
def prefetch(typing_context: Context, zero: Lanes, array: Array, index: Type) -> Intrinsic:
    """Prefetch the cache lines of the lanes that start at `array[index]`."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        bytes_at, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [bytes_at, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [bytes_at], function_type)
        for place in _places(context, builder, zero, array, *arguments[1:])[::2]:
            builder.call(function, [builder.bitcast(place, bytes_at), i32(1), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.none(zero, array, types.intp), generate


@returns(Vector)
def plus(typing_context: Context, a: Lanes, b: Lanes) -> Intrinsic:
    """a + b."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        pairs = zip(_split(builder, a, arguments[0]), _split(builder, a, arguments[1]), strict=True)
        return _join(builder, a, [builder.fadd(*pair) for pair in pairs])

    return a(a, b), generate


@returns(Vector)
def plus_scaled(typing_context: Context, a: Lanes, scalar: Type, b: Lanes) -> Intrinsic:
    """a + scalar * b, with a single rounding if the processor supports it."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        factor = _spread(builder, a.vector, arguments[1])
        pairs = zip(_split(builder, a, arguments[0]), _split(builder, a, arguments[2]), strict=True)
        return _join(builder, a, [_scaled_sum(builder, x, factor, y) for x, y in pairs])

    return a(a, types.float32, b), generate


@returns(Vector)
def larger(typing_context: Context, a: Lanes, b: Lanes) -> Intrinsic:
    """The larger of a and b, lane by lane; at most 8 lanes."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        return _join(builder, a, [_larger(builder, *(_split(builder, a, x)[0] for x in arguments))])

    return a(a, b), generate


def _across(combine: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Callable[..., Vector]:
    @returns(Vector)
    def across(typing_context: Context, a: Lanes, group: Lanes) -> Intrinsic:
        def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
            (vector,) = _split(builder, a, arguments[0])
            distance = 1
            while distance < group.n:
                vector = combine(builder, vector, _shuffled(builder, vector, [i ^ distance for i in range(a.n)]))
                distance *= 2
            return _join(builder, a, [vector])

        return a(a, group), generate

    return across


#: `largest(a, group)`: in each lane of the 8 the largest, or the sum, of its group of 2, 4 or 8 lanes
largest, total = _across(_larger), _across(lambda builder, a, b: builder.fadd(a, b))


@returns(Vector)
def quotient(typing_context: Context, a: Lanes, b: Lanes) -> Intrinsic:
    """a / b, lane by lane; at most 8 lanes."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        return _join(builder, a, [builder.fdiv(*(_split(builder, a, x)[0] for x in arguments))])

    return a(a, b), generate


@returns(Vector)
def exp_under(typing_context: Context, a: Lanes, top: Lanes) -> Intrinsic:
    """exp(a - top) for a <= top, at least exp(-64), which avoids slow denormal numbers; at most 8 lanes."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        def constant(value: float | np.floating) -> ir.Constant:
            return _constant(a.vector, float(np.float32(value)))

        integers = ir.VectorType(ir.IntType(32), a.n)
        x = builder.fsub(*(_split(builder, a, argument)[0] for argument in arguments))
        x = _larger(builder, x, constant(-64))
        n = builder.fmul(x, constant(1 / np.log(2)))
        n = builder.fsub(builder.fadd(n, constant(ROUND)), constant(ROUND))
        # ln 2 = 0.693359375 - 0.00021219..: the first term has so few bits that its product with n is exact
        r = _scaled_sum(builder, x, n, constant(-0.693359375))
        r = _scaled_sum(builder, r, n, constant(0.693359375 - np.log(2)))
        value = constant(_EXP[-1])
        for coefficient in _EXP[-2::-1]:
            value = _scaled_sum(builder, constant(coefficient), value, r)
        exponent = builder.add(builder.fptosi(n, integers), _constant(integers, 127))
        power = builder.bitcast(builder.shl(exponent, _constant(integers, 23)), a.vector)
        return _join(builder, a, [builder.fmul(value, power)])

    return a(a, top), generate
