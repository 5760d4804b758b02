"""Rows of float32 in separate arrays, addressed by one int64 each, for compiled code: several arrays need no copy in one."""

from types import NoneType

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.base import BaseContext
from numba.core.types import Type
from numba.core.typing import Context, Signature

from wsss.arrays import Int64
from wsss.ops.crf.compiling import Intrinsic, Values, returns


def addresses(array: np.ndarray) -> Int64[np.ndarray, " rows"]:
    """The address of each row of a contiguous float32 array (rows, n), which has to stay alive while they are used."""
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return array.ctypes.data + array.strides[0] * np.arange(len(array), dtype=np.int64)


def _place(builder: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    return builder.gep(builder.inttoptr(address, ir.FloatType().as_pointer()), [index])


@returns(np.float32)
def read_plane(typing_context: Context, address: Type, index: Type) -> Intrinsic:
    """The number at `index` of the row at this address."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        return builder.load(_place(builder, *arguments))

    return types.float32(types.int64, types.intp), generate


@returns(NoneType)
def write_plane(typing_context: Context, address: Type, index: Type, number: Type) -> Intrinsic:
    """Write a number at `index` of the row at this address."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        builder.store(arguments[2], _place(builder, *arguments[:2]))
        return context.get_dummy_value()

    return types.none(types.int64, types.intp, types.float32), generate
