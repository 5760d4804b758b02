"""What a reviewer decided, in files that are complete after every step: `tags.csv`, `corrected/NAME.png`, `train.txt`, `classes.txt`.

`tags.csv` lists the pictures of all splits in the format of `wsss.data.tables`, so that `--tags` reads it, with one more column: `review` is
`accepted`, `rejected`, `changed` (tags or mask were changed, but not accepted yet) or empty. `train.txt` lists the pictures that are left for
training, and exists only while some are rejected. All state is in these files.
"""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss import lock
from wsss.arrays import Bool, UInt8
from wsss.data.files import read_mask, write_mask
from wsss.data.images import Dataset, Images, MaskFile, check_labels
from wsss.data.lists import pictures_below, tags_to_labels, without_suffix
from wsss.data.rows import csv_rows, tags_in
from wsss.data.tables import cannot_be_listed, name_in_table, plain_text, table_text
from wsss.errors import BadInput
from wsss.storage import whole_file, write_text

TAGS, CORRECTED, TRAIN, CLASSES = "tags.csv", "corrected", "train.txt", "classes.txt"
ACCEPTED, REJECTED, CHANGED, OPEN = STATES = ("accepted", "rejected", "changed", "")
_COLUMNS = ("image", "tags", "split", "mask", "review")


@dataclasses.dataclass(frozen=True)
class Counts:
    """How far a review is.

    Attributes:
        total, accepted, rejected, changed: numbers of pictures; `changed` ones are not accepted yet.
        retagged: pictures with other tags than at the beginning.
        corrected: pictures with a corrected mask.
    """

    total: int
    accepted: int
    rejected: int
    changed: int
    retagged: int
    corrected: int

    @property
    def done(self) -> int:
        return self.accepted + self.rejected


class Decisions:
    """The decisions about the pictures of one split. Methods may be called from several threads.

    Args:
        data: the dataset, whose labels are the tags at the beginning.
        split: the split under review.
        out: output folder; decisions that it holds are continued.
        masks: folder of the masks to correct, None to review tags only.

    Raises:
        BadInput: a class name contains a separator of tags, or `out` holds decisions about other pictures or classes, or damaged files.
    """

    def __init__(self, data: Dataset, split: str, out: Path, masks: Path | None) -> None:
        self.images: Images = data.split(split)
        self.out, self.masks = out, masks
        if (wrong := cannot_be_listed(self.images.class_names)) is not None:
            raise BadInput(f"the class name {wrong!r}", "a separator of tags", "none of ; | ,", "Rename the class.")
        self.tags: Bool[np.ndarray, "n c"] = self.images.labels.copy()
        self.states = [OPEN] * len(self.images)
        self._lock = threading.RLock()
        self._split_of = _natural_splits(data)
        self._has_mask_column, self._root = data.kind == "tags", data.root
        self._index = {name: index for index, name in enumerate(self.images.names)}
        if (out / TAGS).exists():
            self._read(data)
        found = pictures_below(out / CORRECTED) if (out / CORRECTED).is_dir() else {}
        self.corrected = {self._index[name] for name in found if name in self._index}
        for index in self.corrected:
            self.states[index] = self.states[index] or CHANGED
        self._other_splits = [images for name, images in data.splits.items() if name != split]

    @functools.cached_property
    def _lines(self) -> list[str]:
        """The lines of the table."""
        return [self._line(index) for index in range(len(self.images))]

    @functools.cached_property
    def _other_lines(self) -> list[str]:
        """The lines of the pictures of other splits."""
        return [line for images in self._other_splits for line in self._lines_of(images)]

    def corrected_path(self, index: int) -> Path:
        """The file of a corrected mask, which may not exist."""
        return self.out / CORRECTED / f"{self.images.names[index]}.png"

    def pseudo_mask(self, index: int) -> Path | None:
        """The file of the pseudo mask, None if there is none."""
        path = self.masks / f"{self.images.names[index]}.png" if self.masks else None
        return path if path and path.is_file() else None

    def mask_path(self, index: int) -> Path | None:
        """The file of the current mask: the corrected one if there is one, and otherwise the pseudo mask."""
        return self.corrected_path(index) if index in self.corrected else self.pseudo_mask(index)

    def mask(self, index: int, *, original: bool = False) -> UInt8[np.ndarray, "h w"]:
        """The mask of a picture: the corrected one if there is one, unless `original`, and otherwise the pseudo mask.

        Raises:
            BadInput: there is none, or it does not fit the picture and the classes.
        """
        path = self.pseudo_mask(index) if original else self.mask_path(index)
        if path is None:
            raise BadInput(self.images.names[index], "no mask", "a pseudo mask", "Make the masks first.")
        mask, size_hw = read_mask(path), self.images.size_hw(index)
        if mask.shape != size_hw:
            found, expected = (f"{height}x{width}" for height, width in (mask.shape, size_hw))
            raise BadInput(path, f"a mask of {found}", f"{expected} like its picture", "Make the masks again.")
        check_labels(mask, self.images.n_labels, str(path), self.images.class_names)
        return mask

    def counts(self) -> Counts:
        with self._lock:
            return Counts(
                total=len(self.images),
                accepted=self.states.count(ACCEPTED),
                rejected=self.states.count(REJECTED),
                changed=self.states.count(CHANGED),
                retagged=int((self.tags != self.images.labels).any(1).sum()),
                corrected=len(self.corrected),
            )

    def decide(self, index: int, tags: Sequence[int], state: str) -> None:
        """Set tags and state of a picture, and write the files.

        The mask of an accepted picture counts as corrected, as it is.

        Args:
            index: the picture.
            tags: its 0-based classes.
            state: one of `STATES`; `CHANGED` and `OPEN` both mean not done, and the right one of the two is recorded.

        Raises:
            BadInput: a class or a state that does not exist, or the files cannot be written.
        """
        n_classes = len(self.images.class_names)
        if not all(0 <= cls < n_classes for cls in tags) or state not in STATES:
            expected = f"classes from 0 to {n_classes - 1}, and one of {', '.join(STATES[:3])} or nothing"
            raise BadInput(self.images.names[index], f"{list(tags)[:9]}, {state!r:.40}", expected, "Reload the page.")
        with self._lock:
            lock.check_locks()
            pseudo, path = self.pseudo_mask(index), self.corrected_path(index)
            if state == ACCEPTED and pseudo and index not in self.corrected:
                write_mask(path, read_mask(pseudo))
                self.corrected.add(index)
            elif state != ACCEPTED and index in self.corrected and _same_mask(path, pseudo):
                self._remove_correction(index)
            row = np.zeros(n_classes, bool)
            row[list(tags)] = True
            self.tags[index] = row
            self.states[index] = state
            self._write(index)

    def correct(self, index: int, mask: UInt8[np.ndarray, "h w"]) -> None:
        """Write the mask of a picture. A mask equal to the pseudo mask is no correction, unless the picture is accepted.

        Raises:
            BadInput: there is no mask to correct, the size differs, or a value is neither a label nor 255.
        """
        name, pseudo = self.images.names[index], self.pseudo_mask(index)
        if pseudo is None:
            raise BadInput(name, "no mask to correct", "a pseudo mask", "Review a run with masks.")
        before = read_mask(pseudo)
        if mask.shape != before.shape:
            found, expected = (f"a mask of {a.shape[0]}x{a.shape[1]} (height x width)" for a in (mask, before))
            raise BadInput(name, found, expected, "Reload the page.")
        check_labels(mask, self.images.n_labels, name, self.images.class_names)
        with self._lock:
            lock.check_locks()
            if self.states[index] != ACCEPTED and np.array_equal(mask, before):
                self._remove_correction(index)
            else:
                write_mask(self.corrected_path(index), mask)
                self.corrected.add(index)
            self._write(index)

    def _remove_correction(self, index: int) -> None:
        self.corrected_path(index).unlink(missing_ok=True)
        self.corrected.discard(index)

    def _write(self, index: int) -> None:
        """Write all lists after a change of one picture."""
        if self.states[index] in (CHANGED, OPEN):
            is_changed = index in self.corrected or bool((self.tags[index] != self.images.labels[index]).any())
            self.states[index] = CHANGED if is_changed else OPEN
        self._lines[index] = self._line(index)
        rejected = self.states.count(REJECTED)
        kept = [name for name, state in zip(self.images.names, self.states, strict=True) if state != REJECTED]
        if rejected:
            _write_list(self.out / TRAIN, "".join(f"{name}\n" for name in kept))
        header = table_text([_COLUMNS if self._has_mask_column else [c for c in _COLUMNS if c != "mask"]])
        _write_list(self.out / TAGS, header + "".join(self._lines) + "".join(self._other_lines))
        write_text(self.out / CLASSES, "".join(f"{name}\n" for name in self.images.class_names))
        if not rejected:
            (self.out / TRAIN).unlink(missing_ok=True)

    def _line(self, index: int) -> str:
        return self._row(self.images, index, self.tags[index], self.states[index])

    def _lines_of(self, images: Images) -> Iterator[str]:
        """The lines of the pictures of another split."""
        for index, name in enumerate(images.names):
            if name not in self._index:
                yield self._row(images, index, images.labels[index], OPEN)

    def _row(self, images: Images, index: int, tags: Bool[np.ndarray, " c"], state: str) -> str:
        name = images.names[index]
        cells = [
            name_in_table(name, images.where(index)),
            ";".join(images.class_names[cls] for cls in np.flatnonzero(tags)),
            self._split_of.get(name, "train"),
        ]
        if self._has_mask_column:
            mask = images.masks[index]
            cells.append(_below(mask.path, self._root) if isinstance(mask, MaskFile) else "")
        return table_text([[*cells, state]])

    def _read(self, data: Dataset) -> None:
        """Continue from `tags.csv`."""
        path, others = self.out / TAGS, {name for images in data.splits.values() for name in images.names}
        for line, cells in csv_rows(path, f"a table that `wsss review` wrote ({', '.join(_COLUMNS)})"):
            where = f"{path}, line {line}"
            if not {"image", "tags", "review"} <= cells.keys():
                found, do = f"the columns {', '.join(cells)}", "Choose another output folder with --out."
                raise BadInput(path, found, "a table that `wsss review` wrote", do)
            name, state = without_suffix(plain_text(cells["image"])), cells["review"].strip()
            if name not in self._index:
                if name not in others:
                    do = "Choose another output folder with --out, or give the dataset that was reviewed there."
                    raise BadInput(where, f"{name!r}", "a picture of this dataset", do)
                continue
            if state not in STATES:
                raise BadInput(where, f"{state!r:.40}", f"one of {', '.join(STATES[:3])}, or nothing", "Correct it.")
            index = self._index[name]
            if state != OPEN:
                tags = tags_in(plain_text(cells["tags"]), where)
                self.tags[index] = tags_to_labels(tags, self.images.class_names, where)
                self.states[index] = state


def _same_mask(path: Path, pseudo: Path | None) -> bool:
    return pseudo is not None and np.array_equal(read_mask(path), read_mask(pseudo))


def _natural_splits(data: Dataset) -> Mapping[str, str]:
    """The split of each picture; lists of pictures given by `--train FILE` do not count, unless there is no other."""
    found: dict[str, str] = {}
    for is_list in (False, True):
        for split, images in data.splits.items():
            if (Path(split).suffix != "") == is_list:
                for name in images.names:
                    found.setdefault(name, "train" if is_list else split)
    return found


def _below(path: Path, root: Path) -> str:
    """A path relative to the dataset's folder; files outside of it, which `--allow-outside` accepts, keep their paths."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.resolve())


def _write_list(path: Path, text: str) -> None:
    # names that are not UTF-8 keep their bytes
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
