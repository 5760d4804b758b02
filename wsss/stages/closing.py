"""What to do with a finished run: the next commands, for the end of the command, the report and the review."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsss.health.stages import REVIEW
from wsss.methods import METHODS
from wsss.outputs import DONE
from wsss.presets import RECORDED
from wsss.run import read_record
from wsss.stages.check import read_notes
from wsss.stages.records import folders_with


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
        notes = read_notes(run)
        opened = {**notes.get("opened", {"path": "DATA"}), "tags": run / REVIEW, "untagged": False}
        dataset = dataset_words(opened, skip_bad=bool(notes.get("bad")))
        command = words("wsss", "run", method_of(run), *settings_words(run), *dataset, "--out", f"{run}-2")
        found.append(NextCommand(command, "a run with corrected tags, once you have gone through that file"))
    return found


def method_of(run: Path | None) -> str:
    """The name of the method that made the maps of a run, `METHOD` if it is unknown."""
    for folder in folders_with(run, DONE) if run is not None else ():
        # methods are named after their titles; importing all of them would take seconds
        if folder.name == "cams" and (name := str(read_record(folder)["title"]).lower().replace("-", "_")) in METHODS:
            return name
    return "METHOD"


def settings_words(run: Path | None) -> list[str]:
    """The flag that gives the settings of a run, if it has recorded them."""
    recorded = run / RECORDED if run is not None else None
    return ["--config", str(recorded)] if recorded is not None and recorded.exists() else []


def dataset_words(opened: Mapping[str, Any], *, skip_bad: bool) -> list[str]:
    """The flags that open a dataset.

    Args:
        opened: its path, and the arguments of `open_dataset`.
        skip_bad: whether bad pictures are left out.
    """
    rest = {name: value for name, value in opened.items() if name != "untagged"}
    words = ["--data", str(rest.pop("path"))]
    if negatives := rest.pop("negatives", None):
        words += ["--negative", ", ".join(negatives)]
    switches = {"allow_outside": rest.pop("allow_outside", False), "skip_bad": skip_bad}
    for name, value in rest.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", _flag_text(value)]
    if rest.get("upright") is False:
        words += ["--upright", "false"]
    return words + [f"--{name.replace('_', '-')}" for name, given in switches.items() if given]


def _flag_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)
