"""How numba compiles this package, and caches compiled code between processes.

`entry` compiles a function that Python calls, with all functions that it calls, and caches the result in a file; `inner` and `inlined` are
for the called functions. Numba's cache only depends on the source of the module that defines the entry. `Source` makes it depend on the
source of all modules of this package: it is an empty value whose type is named by a hash of that source, and every entry takes one as part
of its `Team`.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from llvmlite import ir
from numba import njit
from numba.core.base import BaseContext
from numba.core.types import Type
from numba.core.typing import Context, Signature
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

if TYPE_CHECKING:
    from numba.core.decorators import _JITWrapper

# Python calls entries alone, C calls none, and no code counts references to arrays: callers keep those that they pass, and compiled code
# allocates nothing. Without all this, half as many instructions have to be compiled
_LEAN = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
entry = cast("_JITWrapper", cast(Any, njit)(cache=True, **_LEAN))
inner = cast("_JITWrapper", cast(Any, njit)(no_cpython_wrapper=True, **_LEAN))
inlined = cast("_JITWrapper", cast(Any, njit)(no_cpython_wrapper=True, inline="always", **_LEAN))

R = TypeVar("R")
Values = Sequence[ir.Value]
Intrinsic = tuple[Signature, Callable[[BaseContext, ir.IRBuilder, Signature, Values], ir.Value]]
"""the signature of a function in compiled code, and the function that generates its instructions"""


def returns(kind: type[R]) -> Callable[[Callable[..., Intrinsic]], Callable[..., R]]:
    """Decorator for a function in compiled code that returns a value of this type.

    Numba calls the decorated function during compilation, with the typing context and the types of the arguments.
    """
    return lambda function: cast(Callable[..., R], intrinsic(function))


class Unboxing(Protocol):
    """The argument that numba passes to a function that unboxes a Python value."""

    context: BaseContext
    builder: ir.IRBuilder


class Source:
    """Identifies the source that a compiled function was compiled from."""


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
