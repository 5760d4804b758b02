"""What `wsss review` works on: the dataset of a run, or the one on the command line, its tags, masks and maps, and commands that use the result."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.images import Dataset
from wsss.data.maps import read_matching_cams
from wsss.data.open import open_dataset
from wsss.data.tables import labels_by_name, labels_of
from wsss.digests import content_digest
from wsss.errors import BadInput
from wsss.progress import Progress
from wsss.review.decisions import CLASSES, CORRECTED, TAGS, TRAIN, Counts
from wsss.review.options import ReviewOptions
from wsss.run import DONE, read_record
from wsss.stages.check import read_notes, reopen
from wsss.stages.closing import dataset_words, method_of, settings_words
from wsss.stages.records import holds, read_stages
from wsss.stages.supervised import WORDS_ALONE, tags_behind
from wsss.weights import WEIGHTS

# Layouts whose classes are the sorted tags, unless they are listed
_WITHOUT_CLASS_LIST = ("folders", "tags", "pictures")


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is reviewed.

    Attributes:
        data: the dataset; the labels of the split are the tags at the beginning.
        split: the split.
        masks, cams: folders, None if there are none.
        out: output folder.
        run: run folder, None if only tags are reviewed.
        opened: path and options with which the dataset was opened.
        skip_bad: whether bad pictures were left out.
        words_alone: whether the maps of the run were made without tags, from the names of the classes.
    """

    data: Dataset
    split: str
    masks: Path | None
    cams: Path | None
    out: Path
    run: Path | None
    opened: Mapping[str, Any]
    skip_bad: bool
    words_alone: bool = False

    def commands(self, counts: Counts) -> list[tuple[str, str]]:
        """Titles and command lines that train on the result of a review; none if nothing was changed."""
        found = []
        base = self.run or self.out
        corrected = ["--corrected", str(self.out / CORRECTED)] if counts.corrected and self.masks is not None else []
        if counts.retagged or counts.rejected:
            words = [
                "wsss",
                "run",
                method_of(self.run),
                *settings_words(self.run),
                *(("--inference.words_only", "false") if self.words_alone else ()),
                *self._dataset(counts, retagged=True),
            ]
            title = "Run again with the reviewed tags" + (" and the corrected masks" if corrected else "")
            found.append((title, [*words, *corrected, "--out", f"{base}-reviewed"]))
        if corrected:
            words = ["wsss", "segment", *settings_words(self.run), *self._dataset(counts, retagged=False)]
            words += [*self._initial_weights(), "--masks", str(self.masks), *corrected]
            words += ["--out", str(base / "segmenter-corrected")]
            found.append(("Train a segmenter on the present masks, with the corrections", words))
        return [(title, shlex.join(words)) for title, words in found]

    def _initial_weights(self) -> list[str]:
        """The flag that gives a segmenter the classifier of the run, if the run did so: as its initial weights, or for its features."""
        if self.run is None or not (self.run / "segmenter" / DONE).exists():
            return []
        settings = read_record(self.run / "segmenter")["inputs"]["settings"]
        weights = self.run / "classifier" / WEIGHTS
        used = {"init": settings.get("init"), "features.source": settings.get("features", {}).get("source")}
        for name, value in used.items():
            if holds(value, "identity") and weights.exists() and content_digest(weights) == value["identity"]:
                return [f"--segmenter.{name}", str(weights.parent)]
        return []

    def _dataset(self, counts: Counts, *, retagged: bool) -> list[str]:
        """Flags that open the dataset."""
        opened = dict(self.opened)
        if retagged or opened.get("untagged"):
            opened["tags"] = self.out / TAGS
            if self.data.kind in _WITHOUT_CLASS_LIST:
                opened["classes"] = self.out / CLASSES
        if counts.rejected:
            opened["train"] = self.out / TRAIN
        return dataset_words(opened, skip_bad=self.skip_bad)


def open_sources(options: ReviewOptions) -> Sources:
    """Open what the options name.

    Raises:
        BadInput: there is neither a run nor a dataset, the run is none, or a folder or split does not exist.
    """
    run = options.run
    if options.by_tagclip:
        raise BadInput("--tags", "tagclip", "a table of tags", "Predict them first: wsss tag, or wsss run.")
    if run is not None and not run.is_dir():
        raise BadInput(run, "no such folder", "a run folder", "Check the path.")
    if options.data is not None:
        opened = {"path": options.data, **options.reading()}
        data: Dataset | None = open_dataset(options.data, skip_missing=options.skip_bad, **options.reading())
        skip_bad = options.skip_bad
    elif run is not None:
        _check_no_reading(options)
        data, notes = reopen(run), read_notes(run)
        opened, skip_bad = dict(notes.get("opened", {})), bool(notes.get("bad"))
    else:
        do = "Give the run folder, or --tags and --data to review tags only."
        raise BadInput("RUN and --data", "neither", "a run folder, or a dataset", do)
    if data is None:
        raise BadInput(run or "", "a folder that does not name its dataset", "the dataset too", "Give it with --data.")
    split = options.split or data.train
    masks = _folder(options.masks, run, "masks")
    images = data.split(split)
    if masks is not None:
        images.check_maskable()
    cams = _folder(options.cams, run, "cams")
    words_alone = (
        run is not None and (run / "cams" / DONE).exists() and tags_behind(run, read_stages(run)) == WORDS_ALONE
    )
    if run is not None and opened.get("untagged"):
        data = _tagged(data, split, run / "tags" / TAGS, cams if words_alone else None)
    default = Path("review") if run is None else run / "review"
    return Sources(data, split, masks, cams, options.out or default, run, opened, skip_bad, words_alone)


def _check_no_reading(options: ReviewOptions) -> None:
    """Raise BadInput for options of the dataset, which is opened as the run opened it."""
    defaults = {field.name: field.default for field in dataclasses.fields(ReviewOptions)}
    given = [
        name
        for name in (*options.reading(), "skip_bad")
        if name in defaults and getattr(options, name) != defaults[name]
    ]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise BadInput(flag, "a flag that changes how the dataset is read", "the dataset too", "Give it with --data.")


def _folder(given: Path | None, run: Path | None, name: str) -> Path | None:
    if given is not None and not given.is_dir():
        raise BadInput(given, "no such folder", f"a folder of {name}", "Check the path.")
    return given or (run / name if run is not None and (run / name).is_dir() else None)


def _tagged(data: Dataset, split: str, table: Path, cams: Path | None) -> Dataset:
    """An untagged dataset with what a run has found: TagCLIP's tags, or the classes of the maps that it made without tags.

    Raises:
        BadInput: the run has found nothing yet.
    """
    images = data.split(split)
    if cams is not None:
        labels = np.zeros_like(images.labels)
        with Progress("classes of the maps", len(images), resumable=False) as bar:
            for index in range(len(images)):
                labels[index, read_matching_cams(images, cams, index, images.size_hw(index))[0]] = True
                bar.advance()
    elif table.exists():
        labels, _ = labels_of(images.names, labels_by_name(table, images.class_names), len(images.class_names))
    else:
        do = "Run the same command again; it continues."
        raise BadInput(table, "no such file", "the tags that the run has predicted", do)
    return dataclasses.replace(data, splits={**data.splits, split: dataclasses.replace(images, labels=labels)})
