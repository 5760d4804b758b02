"""What a name means where labels are named: a class, nothing at all, or pixels that do not count."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsss.data.labels import IGNORE
from wsss.errors import BadInput

BACKGROUND = frozenset(("background", "_background_"))
IGNORED = "__ignore__"

# Words that may be a class, or say that none is there. Only the user knows
_DOUBTFUL = frozenset((
    "clean", "defect_free", "defectfree", "empty", "good", "healthy", "negative", "negatives", "neg", "nil", "no", "nodefect", "nodefects",
    "none", "normal", "nothing", "null", "ok", "okay", "unlabeled", "unlabelled",
))  # fmt: skip
_NO_SOMETHING = re.compile(r"(?:no|non|not|without)[_ -].+|.+[_ -](?:free|negative)")


@dataclasses.dataclass(frozen=True)
class Roles:
    """Labels by name.

    Attributes:
        class_names: the classes in the order of their labels 1, 2, ...
        negatives: names that mean no tag, beside those of the background.
    """

    class_names: tuple[str, ...]
    negatives: frozenset[str] = frozenset()

    def label(self, name: str) -> int | None:
        """0 for what means nothing, 255 for what is ignored, 1..C for a class, None for any other name."""
        if name in self.class_names:
            return self.class_names.index(name) + 1
        if is_nothing(name, self.negatives):
            return 0
        return IGNORE if name == IGNORED else None

    @property
    def table(self) -> Mapping[str, int]:
        """The labels of the classes by name."""
        return {name: label for label, name in enumerate(self.class_names, 1)}


def is_nothing(name: str, negatives: Iterable[str] = ()) -> bool:
    """Whether a name means that no class is there: the background, or one that the user declared so."""
    return name.lower() in BACKGROUND or name in negatives


def classes_among(names: Iterable[str], negatives: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of classes among these, each once, in their order."""
    return tuple(name for name in dict.fromkeys(names) if name != IGNORED and not is_nothing(name, negatives))


def check_doubtful(class_names: Sequence[str], where: str | Path) -> None:
    """Raise BadInput where a class found among people's tags may mean that nothing is there: `no_defect`, `normal`, `none`.

    Raises:
        BadInput: such a name; the two things that it may mean are told.
    """
    for name in class_names:
        word = name.strip().lower()
        if word.replace(" ", "_").replace("-", "_") in _DOUBTFUL or _NO_SOMETHING.fullmatch(word):
            others = [other for other in class_names if other != name]
            raise BadInput(
                where,
                f"a class {name!r}, which may mean that no class is there",
                "to be told what it means",
                f"If nothing is there, say --negative {_quoted(name)}: such pictures are trained on without any tag. If it is "
                f"something to segment, list all classes: --classes {_quoted(', '.join([*others, name]))}.",
            )


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w.,-]+", text) else '"' + text + '"'
