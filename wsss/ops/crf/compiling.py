"""How numba compiles this package, and keeps what it has compiled from one process to the next.

`entry` compiles a function that Python calls, together with all that it calls, and keeps the result in a file; `inner` and `inlined` are for
what it calls. Numba's files are tied to the text of the module that holds the entry alone. `Source` ties them to the text of all modules
of this package: it is a value without content whose type is named by that text, and every entry takes one as a part of its team.
"""

import hashlib
from pathlib import Path

from llvmlite import ir
from numba import njit
from numba.core.base import BaseContext
from numba.core.types import Type
from numba.core.typing import Context
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

entry = njit(nogil=True, cache=True, error_model="numpy")
inner = njit(nogil=True, error_model="numpy")
inlined = njit(nogil=True, error_model="numpy", inline="always")


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
def _unbox_source(source: _SourceType, value: ir.Value, context: BaseContext) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())
