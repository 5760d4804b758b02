"""Open a dataset for a command: print an overview, find bad files, and leave them out if the user asks for it."""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsss import cache, digests, launch
from wsss.cache import CONTENTS
from wsss.data.class_names import likely_typos, notes_on_missing_classes
from wsss.data.images import Dataset, Images, table_fingerprint
from wsss.data.info import bad_pictures, check_picture, check_pictures, mask_doubts, notes_on_overlap, overview, render
from wsss.data.open import open_dataset
from wsss.differences import outdated, pictures_changed
from wsss.errors import BadInput, is_regular
from wsss.outputs import DONE, INPUTS, STARTED, read_verified
from wsss.progress import Progress
from wsss.storage import digest, read_json, read_only, write_json, write_packed

# In a run folder: the result of checking the dataset
DATA = "data.json"
# In the cache: the same, compressed and with a checksum
FOUND = "found.json.gz"

log = logging.getLogger("wsss")


def open_checked(
    path: Path, *, skip_bad: bool, split: str | None = None, remember: Path | None = None, **options: Any
) -> Dataset:
    """Open a dataset and check it; see `checked`."""
    data = open_dataset(path, skip_missing=skip_bad, **options)
    return checked(path, data, skip_bad=skip_bad, split=split, remember=remember, **options)


def checked(
    path: Path, data: Dataset, *, skip_bad: bool, split: str | None = None, remember: Path | None = None, **options: Any
) -> Dataset:
    """Print an overview of a dataset, decode every picture and mask once, and compare true masks with tags.

    Args:
        path: path of the dataset.
        data: the dataset.
        skip_bad: leave bad pictures out instead of raising an error.
        split: the only split in use; None for the splits that `wsss run` uses.
        remember: run folder; the result of the checks, and how the dataset was opened, are written to its `data.json`,
            and the next command reuses them. None: the cache has an entry for each dataset and way of opening it (`wsss.cache`).
        options: with which it was opened; see `open_dataset`.

    Returns:
        The dataset; doubts about it are added to its notes.

    Raises:
        BadInput: there are bad files and `skip_bad` is off (the first few are named), or the true masks contradict the dataset.
    """
    used = [split] if split else list(dict.fromkeys(name for name in (data.train, data.scored_split, data.val) if name))
    # lists of classes and of pictures may be given as words or as files
    opened = {"path": str(path.resolve())} | {
        name: str(Path(value).resolve()) if isinstance(value, str | Path) and is_regular(value) else value
        for name, value in options.items()
    }
    found = launch.decided_by_first(lambda: _inspected(data, used, remember, opened, skip_bad))
    bad = found["bad"]
    if bad and not skip_bad:
        shown = "\n".join(f"  {message}" for message in list(bad.values())[:5])
        raise BadInput(
            path,
            f"{len(bad)} bad files, for example:\n{shown}\n",
            "readable pictures, and masks that match them",
            "Repair or remove them, or leave them out with --skip-bad.",
        )
    if found["stops"]:
        raise BadInput(*found["stops"][0])
    data = dataclasses.replace(data, notes=(*data.notes, *found["doubts"]))
    if not bad:
        return data
    log.info("%d bad pictures are left out", len(bad))
    return _without_bad(data, bad)


def reopen(run: Path) -> Dataset | None:
    """The dataset that a run was made from, without its bad pictures; None if the run does not name one.

    Raises:
        BadInput: the dataset no longer exists.
    """
    known = read_notes(run)
    if "opened" not in known:
        return None
    data = open_dataset(**known["opened"], skip_missing=True)
    return _without_bad(dataclasses.replace(data, notes=(*data.notes, *known["doubts"])), known["bad"])


def _without_bad(data: Dataset, bad: Collection[str]) -> Dataset:
    splits = {
        split: images.subset(i for i, path in enumerate(images.paths) if _relative_file(data, path) not in bad)
        for split, images in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def _relative_file(data: Dataset, path: Path) -> str:
    """A picture's path relative to the dataset: pictures of two splits may have the same name."""
    return os.path.relpath(path, data.root)


def _inspected(
    data: Dataset, used: list[str], run: Path | None, opened: dict[str, Any], skip_bad: bool
) -> dict[str, Any]:
    """The result of `_inspect`, stored in the run folder or in the cache, or read from there if the dataset has not changed."""
    place = run or cache.entry("data set", used, opened)
    if place is None:
        return _inspect(data, used, overview(data), opened)
    digests.load_cache(place / CONTENTS)
    known = read_notes(place) if run else cache.load(place / FOUND)
    for images in () if known else _distinct(data, used):
        # every file has to be read once, which may take minutes
        with Progress(f"digests of {images.title}", len(images)) as progress:
            digests.content_digests(images.paths, progress.advance)
    tables = {name: data.split(name).table() for name in used}
    fingerprints = {name: table_fingerprint(table) for name, table in tables.items()}
    changed = known.get("fingerprints") != fingerprints
    if run and known and changed:
        _refuse_stale(run, known, tables, fingerprints)
    # what stopped a command may have been answered outside the files: by a list of classes, or by installing a reader of a format
    # a run goes on without the pictures that it has left out
    if changed or known["stops"] or (not (run and skip_bad) and _is_repaired(data, used, known["bad"])):
        overviewed = overview(data)
        known = {"fingerprints": fingerprints, "tables": digest(tables), "overview": overviewed}
        known |= _inspect(data, used, overviewed, opened)
        known["made_of"] = {name: _without_bad(data, known["bad"]).split(name).fingerprint() for name in used}
        if run:
            write_packed(run / INPUTS, tables)
    _remember({**known, "opened": opened}, known.get("opened") != opened, run, place, data.root)
    return known


def _is_repaired(data: Dataset, used: list[str], bad: Mapping[str, str]) -> bool:
    """Whether something else is now wrong with the bad pictures, or nothing."""
    return any(
        check_picture(images, index).message != bad[file]
        for images in (_distinct(data, used) if bad else ())
        for index, path in enumerate(images.paths)
        if (file := _relative_file(data, path)) in bad
    )


def _remember(known: dict[str, Any], is_new: bool, run: Path | None, place: Path, below: Path) -> None:
    """Write what is known, if it is new, and digests of the files."""
    if run is None:
        with cache.writing(place):
            if is_new:
                write_packed(place / FOUND, known)
            digests.save_cache(place / CONTENTS, below=below)
        return
    # the dataset may have been moved
    if is_new and not read_only(run):
        write_json(run / DATA, known)
    digests.save_cache(run / CONTENTS, below=below)


def _inspect(data: Dataset, used: list[str], overviewed: dict[str, Any], opened: dict[str, Any]) -> dict[str, Any]:
    """Messages about bad pictures by file (`bad`), doubts about true masks (`doubts`), and errors that end the command (`stops`)."""
    log.info("%s", render(overviewed))
    bad: dict[str, str] = {}
    notes = notes_on_missing_classes(data)
    if {data.train, data.val} <= {*used}:
        notes += notes_on_overlap(data)
    doubts = [likely_typos(data, opened.get("classes"))]
    for images in _distinct(data, used):
        with Progress(f"check {images.title}", len(images)) as progress:
            inspected = check_pictures(images, progress=lambda done, total: progress.advance())
        paths = dict(zip(images.names, images.paths, strict=True))
        bad |= {_relative_file(data, paths[name]): message for name, message in bad_pictures(images, inspected).items()}
        doubtful = mask_doubts(images, inspected)
        notes += doubtful.notes
        doubts += doubtful.stops
    for note in notes:
        log.info("note: %s", note)
    stops = [(stop.where, stop.found, stop.expected, stop.do) for stop in doubts if stop]
    return {"bad": bad, "doubts": notes, "stops": stops}


def read_notes(run: Path) -> dict[str, Any]:
    """What a run folder says about its dataset; empty if it has no `data.json`.

    Raises:
        BadInput: the file is damaged.
    """
    path, expected = run / DATA, "notes on the dataset of a run"
    if not path.exists():
        return {}
    content = read_json(path, expected)
    if not isinstance(content, dict) or not isinstance(content.get("bad", {}), dict):
        raise BadInput(path, f"{content!s:.50}", expected, "It was changed after it was written: remove it.")
    return content


def _refuse_stale(
    run: Path, known: Mapping[str, Any], tables: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> None:
    """Raise BadInput if stages of a run were made from an earlier content of its dataset."""
    before = known.get("fingerprints", {})
    changed = [name for name in before if before[name] != fingerprints.get(name)]
    stages = [
        path.parent
        for pattern in ("*", "*/*")
        for path in sorted(run.glob(f"{pattern}/*.json"))
        if path.name in (DONE, STARTED)
    ]
    gone = {known.get("made_of", {}).get(name) for name in changed}
    stale = outdated([], gone, stages)
    if not stale:
        return
    old = read_verified(run / INPUTS, known["tables"], "the inputs of a run") if (run / INPUTS).exists() else {}
    changes = [
        f"{name}: {'; '.join(pictures_changed(old[name], tables[name]))}"
        if name in tables
        else f"{name} no longer exists"
        for name in changed
        if name in old
    ]
    raise BadInput(
        run,
        f"a run made from an earlier content of the dataset ({'. '.join(changes) or 'other pictures'})",
        "the unchanged dataset, or stages made from its current content",
        f"To make them from the current content, remove {', '.join(map(str, stale))} and run the same command again; to keep "
        "them, undo the change or choose another output folder.",
    )


def _distinct(data: Dataset, used: list[str]) -> list[Images]:
    """The splits in use, without repeated pictures."""
    seen: set[Path] = set()
    splits = []
    for name in used:
        images = data.split(name)
        new = [i for i, path in enumerate(images.paths) if path not in seen or images.masks[i] is not None]
        seen.update(images.paths)
        splits.append(images.subset(new))
    return splits
