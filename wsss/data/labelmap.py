"""`labelmap.txt` in exports of CVAT and Datumaro in VOC's layout: the classes, and their colours in masks.

    # label:color_rgb:parts:actions
    background:0,0,0::
    cat:48,112,32::

If no line has a colour, as in exports of Datumaro, masks have the colours of VOC's palette in the order of the lines.
"""

from collections.abc import Sequence
from pathlib import Path

from wsss.data.labels import Colour, MaskTable, voc_palette
from wsss.data.roles import IGNORED, Roles, only_classes
from wsss.data.text import read_lines
from wsss.errors import BadInput
from wsss.storage import whole_file

LABELMAP = "labelmap.txt"
_EXPECTED = "lines like `cat:48,112,32::`, a label and its colour"
# VOC's colour of ignored pixels
VOID: Colour = (224, 224, 192)
# Names of ignored pixels in tools
_VOID_NAMES = frozenset((IGNORED, "ignored", "void"))


def check_names(class_names: Sequence[str]) -> None:
    """Raise BadInput if a class has a name that a label map cannot hold, or that means something else in it."""
    for name in class_names:
        if ":" in name or name.startswith("#") or name != name.strip() or name.lower() in _VOID_NAMES:
            expected = f"names without a colon, not beginning with #, and other than {', '.join(sorted(_VOID_NAMES))}"
            raise BadInput("classes", f"the class {name!r}", f"{expected}, as in {LABELMAP}", "Rename the class.")


def write_labelmap(path: Path, class_names: Sequence[str], *, with_void: bool) -> None:
    """Write the background and the classes with VOC's colours, so that the colour of label i is that of VOC's palette; and, if wanted, void.

    Raises:
        BadInput: as `check_names`.
    """
    check_names(class_names)
    colours = [tuple(colour) for colour in voc_palette()[: len(class_names) + 1].tolist()]
    rows = [*zip(("background", *class_names), colours, strict=True), *([("ignored", VOID)] if with_void else [])]
    with whole_file(path) as temporary:
        lines = ("# label:color_rgb:parts:actions", *(f"{name}:{','.join(map(str, rgb))}::" for name, rgb in rows))
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_labelmap(path: Path, negatives: frozenset[str] = frozenset()) -> tuple[tuple[str, ...], MaskTable]:
    """The classes of a label map in its order, and the labels of its colours.

    Args:
        path: the file.
        negatives: names that mean that no class is present, in addition to `background`.

    Raises:
        BadInput: the file is broken, only some labels have a colour, or two have the same name or colour.
    """
    colours: dict[str, Colour | None] = {}
    for number, line in read_lines(path, _EXPECTED):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        where, text = f"{path}, line {number}", rest.partition(":")[0].strip()
        if not name.strip() or name.strip() in colours:
            found = f"the label {name.strip()!r} again" if name.strip() else "no label"
            raise BadInput(where, found, _EXPECTED, "Correct the line.")
        colours[name.strip()] = _colour(text, where) if text else None
    given = {name: colour for name, colour in colours.items() if colour is not None}
    if not colours or (given and len(given) < len(colours)):
        missing = next((name for name in colours if name not in given), "")
        raise BadInput(
            path,
            f"no colour for the label {missing!r}" if colours else "no label",
            f"{_EXPECTED}, for all labels or none",
            "Export the data set again, or complete the file.",
        )
    if not given:
        palette = voc_palette().tolist()
        given = {name: (r, g, b) for name, (r, g, b) in zip(colours, palette, strict=False)}
    class_names = only_classes((name for name in given if name.lower() not in _VOID_NAMES), negatives)
    roles = Roles(class_names, negatives)
    labels: dict[Colour, int] = {}
    for name, colour in given.items():
        label = 255 if name.lower() in _VOID_NAMES else roles.label(name)
        if labels.setdefault(colour, label or 0) != (label or 0):
            raise BadInput(
                path, f"the colour {colour} for {name!r} and another label", "a colour for each", "Change one."
            )
    labels.setdefault((0, 0, 0), 0)
    labels.setdefault(VOID, 255)
    return class_names, MaskTable.of(labels, f"{path.name} ({', '.join(list(given)[:8])})")


def _colour(text: str, where: str) -> Colour:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and int(part[:4]) < 256 and len(part) < 4 for part in parts):
        raise BadInput(where, f"the colour {text!r}", _EXPECTED, "Write red, green and blue, 0 to 255.")
    red, green, blue = map(int, parts)
    return red, green, blue
