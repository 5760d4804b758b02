"""Suspicious tags: their file in a run, and the table that people correct."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from wsss.data.images import Dataset, Images
from wsss.data.tables import cannot_be_listed, name_in_table, table_text
from wsss.errors import BadInput
from wsss.storage import read_json, whole_file

# In the folder of the check of the tags: all suspicious tags, worst first
SUSPECTS = "suspects.json"


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A suspicious tag.

    Attributes:
        image: name of the picture.
        tag: the class.
        present: whether the picture has the tag.
        score: distance between the tag (1 or 0) and its prediction, at most 1.
    """

    image: str
    tag: str
    present: bool
    score: float

    @property
    def direction(self) -> str:
        """What contradicts the tag, in words."""
        return "tagged, but not believed" if self.present else "not tagged, but believed"


def read_suspects(folder: Path) -> list[Suspect]:
    """The suspicious tags that `check_tags` found, worst first; empty if there is no such file.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / SUSPECTS
    if not path.exists():
        return []
    expected = "the suspicious tags of a run"
    content = read_json(path, expected)
    try:
        return [Suspect(**one) for one in content]
    except TypeError as error:
        do = f"It was changed after it was written: remove {folder}, and run the same command again."
        raise BadInput(path, f"{content!s:.50}", expected, do) from error


def joined(*lists: Sequence[Suspect]) -> list[Suspect]:
    """The suspicious tags of several checks, worst first; one that several checks found has its highest score."""
    worst: dict[tuple[str, str], Suspect] = {}
    for suspect in sorted((suspect for one in lists for suspect in one), key=lambda suspect: -suspect.score):
        worst.setdefault((suspect.image, suspect.tag), suspect)
    return list(worst.values())


def write_review(
    path: Path, data: Dataset, images: Images, found: Sequence[Suspect], scored: dict[str, dict[str, float]]
) -> bool:
    """Write the table of `review_table`.

    Returns:
        False if there is none; then nothing is written.
    """
    table = review_table(data, images, found, scored)
    if table is not None:
        with whole_file(path) as temporary:
            temporary.write_bytes(table)
    return table is not None


def review_table(
    data: Dataset, images: Images, found: Sequence[Suspect], scored: dict[str, dict[str, float]]
) -> bytes | None:
    """The table of all pictures and tags, suspicious ones first, that people correct and give to `--tags`.

    Args:
        data: the dataset; its other splits are listed too.
        images: the pictures that were checked.
        found: see `suspects`.
        scored: TagCLIP's scores by picture and class; empty if it did not predict the tags.

    Returns:
        CSV; None if a class has a name that a table of tags cannot hold.
    """
    if cannot_be_listed(images.class_names):
        return None
    of_picture: dict[str, list[Suspect]] = {}
    for suspect in found:
        of_picture.setdefault(suspect.image, []).append(suspect)
    index = {name: position for position, name in enumerate(images.names)}
    first = [index[name] for name in of_picture]
    rest = [position for position, name in enumerate(images.names) if name not in of_picture]
    header: list[object] = [
        "image",
        "tags",
        "split",
        "suspicious",
        "why",
        "score",
        "suggested",
        *(["tagger_score"] if scored else []),
    ]
    rows: list[list[object]] = [header]
    for position in first + rest:
        name = images.names[position]
        tags = [images.class_names[c] for c in images.classes(position)]
        doubts = of_picture.get(name, [])
        wrong = {doubt.tag for doubt in doubts}
        suggested = [tag for tag in images.class_names if (tag in tags) != (tag in wrong)]
        by_tagger = [";".join(f"{scored[name][doubt.tag]:.3f}" for doubt in doubts)] if scored else []
        rows.append(
            [
                name_in_table(name, images.where(position)),
                ";".join(tags),
                data.train,
                ";".join(doubt.tag for doubt in doubts),
                ";".join(doubt.direction for doubt in doubts),
                ";".join(f"{doubt.score:.3f}" for doubt in doubts),
                ";".join(suggested) if doubts else "",
                *by_tagger,
            ]
        )
    rows += _other_rows(data, set(images.names), len(header))
    # names that are not UTF-8 keep their bytes
    return table_text(rows).encode("utf-8", errors="surrogateescape")


def _other_rows(data: Dataset, listed_names: set[str], columns: int) -> list[list[object]]:
    """The rows of the validation split, which a folder with tables would otherwise lose."""
    if data.val is None:
        return []
    val = data.split(data.val)
    return [
        [
            name_in_table(name, val.where(position)),
            ";".join(val.class_names[c] for c in val.classes(position)),
            data.val,
            *[""] * (columns - 3),
        ]
        for position, name in enumerate(val.names)
        if name not in listed_names
    ]
