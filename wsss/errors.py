"""The one error that a user's input can cause."""

import os


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
