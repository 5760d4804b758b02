"""The arrays of the fixtures that no test looks at, each with its reason; `tests/parity/looked_at.py` refuses any other.

Keys are files under tests/parity/data; patterns are those of `fnmatch`. An entry that hides nothing is refused too.
"""

NEVER: dict[str, dict[str, str]] = {}

# looked at by tests that are marked slow, which `make test` leaves out
SLOW: dict[str, tuple[str, ...]] = {}
