"""What to do with a finished run: the next commands, for the end of the command and the report."""

import shlex
from pathlib import Path
from typing import NamedTuple

from wsss.health.stages import REVIEW
from wsss.outputs import DONE


class NextCommand(NamedTuple):
    """A command, and what it is for."""

    command: str
    about: str


def next_commands(run: Path) -> list[NextCommand]:
    """The commands that make use of what a run has made, best first.

    Args:
        run: run folder; its stages may be unfinished.
    """

    def words(*parts: str | Path) -> str:
        return " ".join(shlex.quote(str(part)) for part in parts)

    found = []
    if (run / "segmenter" / DONE).exists():
        command = words(
            "wsss", "predict", "--weights", run, "--pictures", "NEW_PICTURES", "--out", "MASKS", "--overlay"
        )
        found.append(NextCommand(command, "masks of new pictures, and pictures with the masks drawn over them"))
    if (run / "masks" / DONE).exists():
        found.append(NextCommand(words("wsss", "review", run), "tags and masks on a local page, to correct them"))
        command = words("wsss", "export", "masks", run / "masks", "--format", "coco", "--out", f"{run}-coco")
        found.append(NextCommand(command, "the pseudo masks for another program; --help lists its formats"))
    if (run / REVIEW).exists():
        command = words("wsss", "run", "METHOD", "--data", "DATA", "--tags", run / REVIEW, "--out", f"{run}-2")
        found.append(NextCommand(command, "a run with corrected tags, once you have gone through that file"))
    return found
