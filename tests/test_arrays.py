"""Types of arrays are jaxtyping's where it is imported, and otherwise the class of the array."""

import subprocess
import sys

import jaxtyping

from wsss import arrays

PLAIN = """
import sys
from wsss import arrays
assert "jaxtyping" not in sys.modules
for name in arrays.__all__:
    assert getattr(arrays, name)[list, "h w"] is list, name
print(list | None == arrays.Float[list, "h w"] | None)
"""


def test_types_are_those_of_jaxtyping_where_it_was_imported_before():
    assert all(getattr(arrays, name) is getattr(jaxtyping, name) for name in arrays.__all__)


def test_types_stand_for_the_class_of_the_array_elsewhere():
    assert subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True).stdout == "True\n"
