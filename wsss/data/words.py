"""The texts for classes and backgrounds that CLIP encodes."""

import dataclasses
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wsss.data.coco import COCO_CATEGORIES
from wsss.data.documents import read_document
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BadInput, suggestion

_FILES = Path(__file__).parents[1] / "configs" / "words"
# the published lists of a method: for VOC's classes, for COCO's, and for any others, for which only the backgrounds are used
_LISTS = {
    "clip_es": ("voc.yaml", "coco.yaml", "voc.yaml"),
    "clims": ("clims_voc.yaml", "clims_coco.yaml", "clims_voc.yaml"),
    "clims_camera_ready": ("clims_camera_ready.yaml", "clims_coco.yaml", "clims_voc.yaml"),
    "qa_clims": ("qa_clims_voc.yaml", "qa_clims_coco.yaml", "qa_clims_coco.yaml"),
}
_KEYS = ("prompts", "names", "background", "cooccurring", "short", "synonyms")
_EXPECTED = (
    "YAML with `prompts` (class: text), and optionally `names` (class: text), `background` (a list of words), `cooccurring`, `short` "
    "and `synonyms` (class: words)"
)

Lists = Literal["clip_es", "clims", "clims_camera_ready", "qa_clims"]


@dataclasses.dataclass(frozen=True)
class Words:
    """Texts of one data set; those by class are in the order of the classes.

    Attributes:
        prompts: each class with its synonyms, as CLIP-ES inserts it into a template.
        names: each class by its plain name, as TagCLIP uses it.
        background: words for backgrounds.
        cooccurring: for each class, the backgrounds that CLIMS contrasts it with: its own list, or else all of `background`.
        short: for each class, parts of its name that identify it in an answer (QA-CLIMS).
        synonyms: for each class, other words for it and for its subclasses.
    """

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    background: tuple[str, ...]
    cooccurring: tuple[tuple[str, ...], ...]
    short: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, ...], ...]


def read_words(source: str, class_names: Sequence[str], lists: Lists = "clip_es") -> Words:
    """The words of a data set.

    Args:
        source: a YAML file, or `auto`: the published lists for the classes of VOC and of COCO; for other classes, their names.
            Default backgrounds are those of COCO or else of VOC, without those that are classes.
        class_names: in the order of their labels.
        lists: the method whose published lists are used.

    Raises:
        BadInput: there are no classes; the file is no such YAML, or names an unknown class; or texts are empty, or the
            same for two classes or for a class and a background.
    """
    if not class_names:
        raise BadInput("classes", "none", "at least one class name", "Give them with --classes.")
    voc, coco, other = _LISTS[lists]
    published = {frozenset(VOC_CLASSES): voc, frozenset(COCO_CATEGORIES.values()): coco}.get(frozenset(class_names))
    default = _FILES / (published or other)
    path = default if source == "auto" else Path(source)
    content = _content(path) if source != "auto" or published else {}
    texts = {
        # a prompt holds all synonyms, separated by commas without blanks (CLIP-ES)
        key: {name: ",".join(parts) for name, parts in _by_class(content.get(key), class_names, path, key).items()}
        for key in ("prompts", "names")
    }
    prompts, names = (tuple(texts[key].get(name, name) for name in class_names) for key in ("prompts", "names"))
    background, by_class = content.get("background"), content.get("cooccurring")
    if background is None:
        taken = {_plain(text) for text in (*class_names, *prompts, *names)}
        given = _content(default)
        background = [word for word in given["background"] if word not in taken]
        if by_class is None and published:
            by_class = given.get("cooccurring")
    where = "classes" if source == "auto" else source
    for classes in (prompts, names):
        _check_different(classes, background, where)
    cooccurring = _by_class(by_class, class_names, path, "cooccurring")
    for name, prompt in zip(class_names, prompts, strict=True):
        _check_different((prompt,), cooccurring.get(name, ()), where)
    contrasts = tuple(tuple(cooccurring.get(name, background)) for name in class_names)
    others = {key: _by_class(content.get(key), class_names, path, key) for key in ("short", "synonyms")}
    short, synonyms = (tuple(tuple(words.get(name, ())) for name in class_names) for words in others.values())
    return Words(prompts, names, tuple(background), contrasts, short, synonyms)


def check_templates(where: str, templates: Sequence[str]) -> None:
    """Raise BadInput unless there are templates, each with a placeholder `{}` for a name."""
    if not templates or not all("{}" in template for template in templates):
        raise BadInput(where, str(templates), "sentences with {} in them", "Correct them.")


def _content(path: Path) -> dict[str, Any]:
    content = read_document(path, _EXPECTED)
    if not isinstance(content, dict) or not set(content) <= set(_KEYS):
        found = f"the keys {', '.join(map(str, content))}" if isinstance(content, dict) else "no mapping"
        raise BadInput(path, found, _EXPECTED, "Correct it.")
    background = content.get("background")
    if background is not None and not (isinstance(background, list) and all(isinstance(w, str) for w in background)):
        raise BadInput(
            path,
            "a `background` that is no list of words",
            _EXPECTED,
            "Put words that YAML reads as other values in quotes.",
        )
    return content


def _by_class(given: object, class_names: Sequence[str], path: Path, key: str) -> dict[str, list[str]]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadInput(path, f"`{key}` without classes", _EXPECTED, "Write one line per class.")
    texts = {}
    for name, text in given.items():
        if name not in class_names:
            do = f"{suggestion(str(name), class_names)}Correct or remove it; put words that YAML reads as other values in quotes."
            raise BadInput(path, f"{name!r} in `{key}`", f"names of classes ({', '.join(class_names[:8])} ...)", do)
        parts = text if isinstance(text, list) else [text]
        if not all(isinstance(part, str) and part.strip() for part in parts):
            found = f"{reprlib.repr(text)} for {name!r} in `{key}`"
            raise BadInput(path, found, "a text or a list of them", "Correct it, or put it in quotes.")
        texts[name] = parts
    return texts


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()


def _check_different(prompts: Sequence[str], background: Sequence[str], where: str) -> None:
    first: dict[str, str] = {}
    for text in (*prompts, *background):
        key = _plain(text)
        if not key:
            raise BadInput(where, f"the class or background {text!r}", "a text that is not empty", "Name it.")
        if key in first:
            raise BadInput(
                where,
                f"{text!r} twice among classes and backgrounds",
                "different texts, since CLIP cannot distinguish equal ones",
                "Change one of them in a file for --words, or merge the classes.",
            )
        first[key] = text
