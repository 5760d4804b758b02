"""What an export is: masks in the format of another program."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from wsss.arguments import required
from wsss.options import OutOptions


@dataclasses.dataclass(frozen=True)
class ExportOptions(OutOptions):
    """Masks to export, and where."""

    masks: Path = required()
    """folder of masks, as `wsss predict` and `wsss refine` write them"""


Options = TypeVar("Options", bound=ExportOptions)


@dataclasses.dataclass(frozen=True)
class Export(Generic[Options]):
    """A format, which is the command `wsss export NAME`.

    Attributes:
        name: of the command.
        about: what it writes, as a part of a sentence.
        options: what it needs.
        write: writes the masks below `options.out`, and gives what it has written.
    """

    name: str
    about: str
    options: type[Options]
    write: Callable[[Options], Path]
