"""How numba compiles this package, and keeps what it has compiled from one process to the next.

`entry` compiles a function that Python calls, together with all that it calls, and keeps the result in a file; `inner` and `inlined` are for
what it calls. Numba's files are tied to the text of the module that holds the entry alone. `Source` ties them to the text of all modules
of this package: it is a value without content whose type is named by that text, and every entry takes one as a part of its team.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

from llvmlite import ir
from numba import njit
from numba.core.base import BaseContext
from numba.core.types import Type
from numba.core.typing import Context, Signature
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

entry = njit(nogil=True, cache=True, error_model="numpy")
inner = njit(nogil=True, error_model="numpy")
inlined = njit(nogil=True, error_model="numpy", inline="always")

R = TypeVar("R")
Values = Sequence[ir.Value]
Intrinsic = tuple[Signature, Callable[[BaseContext, ir.IRBuilder, Signature, Values], ir.Value]]
"""The signature of a function of compiled code, and what writes its instructions"""


def gives(kind: type[R]) -> Callable[[Callable[..., Intrinsic]], Callable[..., R]]:
    """A function of compiled code that gives a value of this kind.

    What it decorates is called while numba compiles: with the types of the arguments, after the context of the compilation.
    """
    return lambda written: cast(Callable[..., R], intrinsic(written))


class Unboxing(Protocol):
    """What numba hands to a function that turns a Python value into a compiled one."""

    context: BaseContext
    builder: ir.IRBuilder


class Source:
    """Passed to a compiled function, it names the text that the function was compiled from."""


class _SourceType(Type):
    def __init__(self) -> None:
        text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        super().__init__(name=f"Source({hashlib.sha256(text).hexdigest()})")


register_model(_SourceType)(models.OpaqueModel)
_TYPE = _SourceType()


@typeof_impl.register(Source)
def _typeof_source(value: Source, context: Context) -> _SourceType:
    return _TYPE


@unbox(_SourceType)
def _unbox_source(source: _SourceType, value: ir.Value, unboxing: Unboxing) -> NativeValue:
    return NativeValue(unboxing.context.get_dummy_value())
