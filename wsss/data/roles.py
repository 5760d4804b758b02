"""Whether the name of a label means a class, no class, or ignored pixels."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsss.data.labels import IGNORE
from wsss.errors import BadInput

BACKGROUND = frozenset(("background", "_background_"))
IGNORED = "__ignore__"

# Words that may be a class, or may mean that no class is present; only the user knows
_DOUBTFUL = frozenset((
    "absent", "bg", "clean", "defect_free", "defectfree", "empty", "good", "healthy", "intact", "negative", "negatives", "neg", "nil", "no",
    "nodefect", "nodefects", "none", "normal", "nothing", "notumor", "nontumor", "null", "ok", "okay", "unaffected", "uncracked", "undamaged",
    "uninfected", "unlabeled", "unlabelled",
))  # fmt: skip
# The same as part of a longer name
_DOUBTFUL_PARTS = frozenset(("background", "healthy", "negative", "normal"))
_NO_SOMETHING = re.compile(r"(?:no|non|not|without)_.+|.+_(?:free|negative)")
_DENIED = re.compile(r"(?:non?|not|un)_?(.+)")


@dataclasses.dataclass(frozen=True)
class Roles:
    """Labels by name.

    Attributes:
        class_names: the classes in the order of their labels 1, 2, ...
        negatives: names that mean no class, in addition to those of the background.
    """

    class_names: tuple[str, ...]
    negatives: frozenset[str] = frozenset()

    def label(self, name: str) -> int | None:
        """0 for a name that means no class, 255 for ignored pixels, 1..C for a class, None for any other name."""
        if name in self.class_names:
            return self.class_names.index(name) + 1
        if means_no_class(name, self.negatives):
            return 0
        return IGNORE if name == IGNORED else None

    @property
    def table(self) -> Mapping[str, int]:
        """The labels of the classes by name."""
        return {name: label for label, name in enumerate(self.class_names, 1)}


def means_no_class(name: str, negatives: Iterable[str] = ()) -> bool:
    """Whether a name means that no class is present: the background, or a name that the user declared so."""
    return name.lower() in BACKGROUND or name in negatives


def only_classes(names: Iterable[str], negatives: Iterable[str] = ()) -> tuple[str, ...]:
    """The names without those that mean no class or ignored pixels, each once, in their order."""
    return tuple(name for name in dict.fromkeys(names) if name != IGNORED and not means_no_class(name, negatives))


def check_ambiguous(class_names: Sequence[str], where: str | Path) -> None:
    """Raise BadInput if classes that come from tags may mean that no class is present: `no_defect`, `normal`, `none`.

    Raises:
        BadInput: there are such names; the message says how to declare either meaning.
    """
    doubtful = [name for name in class_names if _is_doubtful(name, class_names)]
    if not doubtful:
        return
    many = len(doubtful) > 1
    shown = ", ".join(map(repr, doubtful[:4])) + (f" and {len(doubtful) - 4} more" if len(doubtful) > 4 else "")
    others = [name for name in class_names if name not in doubtful]
    raise BadInput(
        where,
        f"{'the classes' if many else 'a class'} {shown}, which may mean that no class is present",
        f"a choice what {'they mean' if many else 'it means'}",
        f"If no class is present, use --negative {_quoted(', '.join(doubtful))}: such pictures are trained on without any tag. If "
        f"{'they are' if many else 'it is'} to be segmented, list all classes: --classes {_quoted(', '.join([*others, *doubtful]))}.",
    )


def _is_doubtful(name: str, class_names: Sequence[str]) -> bool:
    """Whether a name is or contains a word for no class, or negates another class (`uncracked`, `NoCrack`)."""
    word = _plain(name)
    if word in _DOUBTFUL or _NO_SOMETHING.fullmatch(word):
        return True
    if set(class_names) == {"0", "1"}:
        return name == "0"
    denied = _DENIED.fullmatch(word)
    parts = word.split("_")
    return bool(
        (denied and denied[1] in map(_plain, class_names)) or (len(parts) > 1 and _DOUBTFUL_PARTS.intersection(parts))
    )


def _plain(name: str) -> str:
    """A name in lower case, its words separated by `_`; a capital after a lower-case letter begins a word."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())).lower()


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w.,-]+", text) else '"' + text + '"'
