"""Open a data set for work: say what it holds, look for bad files, leave them out if the user says so."""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsss import digests, launch
from wsss.data.class_names import likely_typos, notes_on_missing_classes
from wsss.data.images import Dataset, Images
from wsss.data.info import bad_pictures, check_pictures, mask_doubts, notes_on_overlap, overview, render
from wsss.data.open import open_dataset
from wsss.differences import outdated, pictures_changed
from wsss.errors import BadInput, is_regular
from wsss.outputs import DONE, INPUTS, STARTED, read_known
from wsss.progress import Progress
from wsss.storage import digest, read_json, read_only, write_json, write_packed

# What a run was made from: what was found in it, and the digests of its files, which are read again when they were touched
DATA, CONTENTS = "data.json", "contents.json.gz"

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
    used = [split] if split else list(dict.fromkeys(name for name in (data.train, data.scored_split, data.val) if name))
    # lists of classes and of pictures may be words or files
    opened = {"path": str(path.resolve())} | {
        name: str(Path(value).resolve()) if isinstance(value, str | Path) and is_regular(value) else value
        for name, value in options.items()
    }
    found = launch.decided_by_first(lambda: _found(data, used, remember, opened))
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
    known = noted(run)
    if "opened" not in known:
        return None
    data = open_dataset(**known["opened"], skip_missing=True)
    return _without(dataclasses.replace(data, notes=(*data.notes, *known["doubts"])), known["bad"])


def _without(data: Dataset, bad: Collection[str]) -> Dataset:
    splits = {
        split: images.subset(i for i, path in enumerate(images.paths) if _file(data, path) not in bad)
        for split, images in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def _file(data: Dataset, path: Path) -> str:
    """A picture's file below the data set: pictures of two splits may have one name."""
    return os.path.relpath(path, data.root)


def _found(data: Dataset, used: list[str], remember: Path | None, opened: dict[str, Any]) -> dict[str, Any]:
    """What `_looked_through` finds. For a run it is noted in its folder, or held against what stands there."""
    if remember is None:
        return _looked_through(data, used, overview(data), opened)
    digests.remember(remember / CONTENTS)
    known = noted(remember)
    for images in () if known else _different(data, used):
        # all files have to be read once, which may take minutes
        with Progress(f"digests of {images.title}", len(images)) as progress:
            digests.content_digests(images.paths, progress.advance)
    tables = {name: data.split(name).table() for name in used}
    fingerprints = {name: data.split(name).fingerprint() for name in used}
    if known.get("fingerprints") != fingerprints:
        if known:
            _refuse_stale(remember, known, tables, fingerprints)
        overviewed = overview(data)
        known = {"fingerprints": fingerprints, "tables": digest(tables), "overview": overviewed}
        known |= _looked_through(data, used, overviewed, opened)
        known["made_of"] = {name: _without(data, known["bad"]).split(name).fingerprint() for name in used}
        write_packed(remember / INPUTS, tables)
    # the same data set may lie elsewhere by now
    if known.get("opened") != opened and not read_only(remember):
        write_json(remember / DATA, {**known, "opened": opened})
    digests.keep(remember / CONTENTS, below=data.root)
    return known


def _looked_through(
    data: Dataset, used: list[str], overviewed: dict[str, Any], opened: dict[str, Any]
) -> dict[str, Any]:
    """Messages about bad pictures by file (`bad`), doubts about true masks (`doubts`), and errors that end the work (`stops`)."""
    log.info("%s", render(overviewed))
    bad: dict[str, str] = {}
    notes = notes_on_missing_classes(data) + notes_on_overlap(data)
    doubts = [likely_typos(data, opened.get("classes"))]
    for images in _different(data, used):
        with Progress(f"look through {images.title}", len(images)) as progress:
            looks = check_pictures(images, progress=lambda done, total: progress.advance())
        paths = dict(zip(images.names, images.paths, strict=True))
        bad |= {_file(data, paths[name]): message for name, message in bad_pictures(images, looks).items()}
        doubtful = mask_doubts(images, looks)
        notes += doubtful.notes
        doubts += doubtful.stops
    for note in notes:
        log.info("note: %s", note)
    stops = [(stop.where, stop.found, stop.expected, stop.do) for stop in doubts if stop]
    return {"bad": bad, "doubts": notes, "stops": stops}


def noted(run: Path) -> dict[str, Any]:
    """What is noted in a run's folder about its data set; nothing where there are no notes.

    Raises:
        BadInput: the notes are broken.
    """
    path, expected = run / DATA, "notes on the data set of a run"
    if not path.exists():
        return {}
    content = read_json(path, expected)
    if not isinstance(content, dict) or not isinstance(content.get("bad", {}), dict):
        raise BadInput(path, f"{content!s:.50}", expected, "It was changed after it was written: remove it.")
    return content


def _refuse_stale(
    run: Path, known: Mapping[str, Any], tables: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> None:
    """Raise BadInput if stages of a run were made from what its data set held before."""
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
    old = read_known(run / INPUTS, known["tables"], "what a run was made from") if (run / INPUTS).exists() else {}
    told = [
        f"{name}: {'; '.join(pictures_changed(old[name], tables[name]))}"
        if name in tables
        else f"{name} is not there now"
        for name in changed
        if name in old
    ]
    raise BadInput(
        run,
        f"a run made from what the data set held before ({'. '.join(told) or 'other pictures'})",
        "the data set as it was, or stages made from it as it is now",
        f"To make them from what is there now, remove {', '.join(map(str, stale))} and start the same command again; to keep "
        "them, undo the change or choose another output folder.",
    )


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
