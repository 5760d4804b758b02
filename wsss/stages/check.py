"""Open a data set for work: say what it holds, look for bad files, leave them out if the user says so."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsss import launch
from wsss.data.class_names import lacking, slips
from wsss.data.images import Dataset, Images
from wsss.data.info import bad_among, doubts_about, look_through, overview, render
from wsss.data.open import open_dataset
from wsss.errors import BadInput, is_regular
from wsss.progress import Progress
from wsss.storage import digest, read_json, write_json

DATA = "data.json"

log = logging.getLogger("wsss")


def open_checked(
    path: Path, *, skip_bad: bool, split: str | None = None, remember: Path | None = None, **options: Any
) -> Dataset:
    """Open a data set, print an overview, decode every picture and mask once, and compare true masks with tags.

    Args:
        path: of the data set.
        skip_bad: leave bad pictures out, instead of stopping at them.
        split: the one split that is worked on; None for those that a recipe uses.
        remember: folder of a run; what was found is written to its `data.json`, with how the data set was opened, and not
            looked for again.
        options: see `open_dataset`.

    Returns:
        The data set, with what is doubtful about it among its notes.

    Raises:
        BadInput: there are bad files and `skip_bad` is off; the first few are named. Or the true masks cannot be what is meant.
    """
    data = open_dataset(path, skip_missing=skip_bad, **options)
    used = [split] if split else list(dict.fromkeys(name for name in (data.train, data.seed_split, data.val) if name))
    # lists of classes and of pictures may be words or files
    opened = {"path": str(path.resolve())} | {
        name: str(Path(value).resolve()) if isinstance(value, str | Path) and is_regular(value) else value
        for name, value in options.items()
    }
    found = launch.decided_by_first(lambda: _looked_through(data, used, remember, opened))
    bad = found["bad"]
    if bad and not skip_bad:
        shown = "\n".join(f"  {message}" for message in list(bad.values())[:5])
        raise BadInput(
            path,
            f"{len(bad)} bad files, the first of them:\n{shown}\n",
            "whole pictures and fitting masks",
            "Mend or remove them, or leave them out with --skip-bad.",
        )
    if found["stops"]:
        raise BadInput(*found["stops"][0])
    data = dataclasses.replace(data, notes=(*data.notes, *found["doubts"]))
    if not bad:
        return data
    log.info("%d bad pictures are left out", len(bad))
    return _without(data, bad)


def reopened(run: Path) -> Dataset | None:
    """The data set that a run was made from, bad pictures left out; None where the run does not say which one it was.

    Raises:
        BadInput: it is not there any more.
    """
    if not (run / DATA).exists():
        return None
    noted = read_json(run / DATA, "notes on the data set")
    if "opened" not in noted:
        return None
    data = open_dataset(**noted["opened"], skip_missing=True)
    return _without(dataclasses.replace(data, notes=(*data.notes, *noted["doubts"])), noted["bad"])


def _without(data: Dataset, bad: Iterable[str]) -> Dataset:
    return dataclasses.replace(data, splits={name: images.without(bad) for name, images in data.splits.items()})


def _looked_through(data: Dataset, used: list[str], remember: Path | None, opened: dict[str, Any]) -> dict[str, Any]:
    """Messages about bad files by picture (`bad`), doubts about true masks (`doubts`), and errors that end the work (`stops`)."""
    fingerprint = digest({name: data.split(name).fingerprint() for name in used})
    record = remember / DATA if remember else None
    if record and record.exists():
        known = read_json(record, "what was found in the data set")
        if known["fingerprint"] == fingerprint:
            return known
    overviewed = overview(data)
    log.info("%s", render(overviewed))
    bad: dict[str, str] = {}
    notes = lacking(data)
    doubts = [slips(data, opened.get("classes"))]
    for images in _different(data, used):
        with Progress(f"look through {images.title}", len(images)) as progress:
            looks = look_through(images, progress=lambda done, total: progress.advance())
        bad |= bad_among(images, looks)
        doubtful = doubts_about(images, looks)
        notes += doubtful.notes
        doubts += doubtful.stops
    for note in notes:
        log.info("note: %s", note)
    stops = [(stop.where, stop.found, stop.expected, stop.do) for stop in doubts if stop]
    found = {"bad": bad, "doubts": notes, "stops": stops}
    if record:
        write_json(record, {"fingerprint": fingerprint, "overview": overviewed, "opened": opened, **found})
    return found


def _different(data: Dataset, used: list[str]) -> list[Images]:
    """The splits in use, each picture once."""
    seen: set[Path] = set()
    splits = []
    for name in used:
        images = data.split(name)
        new = [i for i, path in enumerate(images.paths) if path not in seen or images.masks[i] is not None]
        seen.update(images.paths)
        splits.append(images.subset(new))
    return splits
