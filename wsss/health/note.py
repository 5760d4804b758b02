"""Health notes: what a run found out about itself without any true mask, why it matters, and what to do."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsss.errors import BadInput
from wsss.storage import read_json

# In the folder of each health stage: what was measured, and the notes
HEALTH = "health.json"
# Folders of the health stages in a run, in the order of the stages that they look at
FOLDERS = ("data-health", "classifier-health", "cams-health", "masks-health", "segmenter-health")


@dataclasses.dataclass(frozen=True)
class Note:
    """A doubt about a run.

    Attributes:
        kind: names the rule, for example `flat-maps`.
        found: what was found, with numbers, as a sentence.
        why: why it matters, as a sentence.
        do: what to do, with the setting, option or command, as a sentence.
    """

    kind: str
    found: str
    why: str
    do: str

    def rendered(self) -> str:
        """The note as text: what was found and why it matters, then what to do."""
        return f"note: {self.found} {self.why}\n      {self.do}"


@dataclasses.dataclass(frozen=True)
class Health:
    """The health of one stage.

    Attributes:
        measured: numbers, JSON-serialisable.
        notes: the doubts that follow from them.
    """

    measured: dict[str, Any]
    notes: list[Note]

    def plain(self) -> dict[str, Any]:
        """As JSON-serialisable values."""
        return {"measured": self.measured, "notes": [dataclasses.asdict(note) for note in self.notes]}


def read_health(folder: Path) -> Health | None:
    """The health that a stage wrote into its folder; None if there is none.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / HEALTH
    if not path.exists():
        return None
    expected = "the health notes of a stage"
    content = read_json(path, expected)
    try:
        return Health(dict(content["measured"]), [Note(**note) for note in content["notes"]])
    except (KeyError, TypeError, ValueError) as error:
        do = f"It was changed after it was written: remove {folder}, and run the same command again."
        raise BadInput(path, f"{content!s:.50}", expected, do) from error


def notes(run: Path) -> list[Note]:
    """The health notes of a run, in the order of its stages; empty if it has none, or no health stage has finished.

    Raises:
        BadInput: a file is damaged.
    """
    found = [read_health(run / folder) for folder in FOLDERS]
    return [note for health in found if health for note in health.notes]


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names separated by commas; at most `most` of them, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def percentage(share: float) -> str:
    """A share in [0, 1] as a whole percentage."""
    return f"{100 * share:.0f} %"
