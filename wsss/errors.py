"""The one error that a user's input can cause."""

import math
import os
from collections.abc import Sequence


class BadInput(ValueError):
    """Something that the user gave cannot be used.

    The message names the place (a file, a folder, a setting), what was found there, what was expected and what
    to do about it. The command line prints it without a traceback and ends with status 2.
    """

    def __init__(self, where: str | os.PathLike[str], found: str, expected: str, do: str) -> None:
        self.where, self.found, self.expected, self.do = os.fspath(where), found, expected, do
        super().__init__(f"{self.where}: found {found}; expected {expected}. {do}")

    def __reduce__(self) -> tuple[type["BadInput"], tuple[str, str, str, str]]:
        return BadInput, (self.where, self.found, self.expected, self.do)


def check_range(where: str, values: float | Sequence[float], low: float, high: float = math.inf) -> None:
    """Raise BadInput unless there are values and all of them are in [low, high].

    Args:
        where: name of the setting.
        values: one number or several.
        low, high: both allowed.
    """
    numbers = [values] if isinstance(values, int | float) else list(values)
    span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
    if not numbers or not all(low <= number <= high for number in numbers):
        raise BadInput(where, str(values), f"{'a number' if numbers == [values] else 'numbers'} {span}", "Change it.")


def check_pair(where: str, pair: tuple[float, float], low: float) -> None:
    """Raise BadInput unless both numbers are at least `low` and the first is not above the second."""
    check_range(where, pair, low)
    if pair[0] > pair[1]:
        raise BadInput(where, str(pair), "the smaller number first", "Exchange them.")
