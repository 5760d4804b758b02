"""Types of arrays and their shapes for annotations: `Float[np.ndarray, "h w"]`.

They are jaxtyping's if a program has imported it before, as the tests do to check shapes; otherwise they stand for the class of the array
alone, since nothing looks at the shapes, and importing jaxtyping takes about as long as importing NumPy.
"""

import sys
from typing import TYPE_CHECKING, Any

__all__ = [
    "Bool",
    "Float",
    "Float16",
    "Float32",
    "Int",
    "Int32",
    "Int64",
    "Integer",
    "Num",
    "Shaped",
    "UInt8",
]

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float16, Float32, Int, Int32, Int64, Integer, Num, Shaped, UInt8
else:

    class _Unchecked:
        def __class_getitem__(cls, described: tuple[Any, str]) -> Any:
            return described[0]

    Bool = Float = Float16 = Float32 = Int = Int32 = Int64 = Integer = Num = Shaped = UInt8 = _Unchecked
