"""The texts for classes and backgrounds that CLIP encodes."""

import dataclasses
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wsss.data.coco import COCO_CATEGORIES
from wsss.data.documents import read_document
from wsss.data.text import read_lines
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BadInput, suggestion

_FILES = Path(__file__).parents[1] / "configs" / "words"
# the published lists of a method: for VOC's classes, for COCO's, and for any others, for which only the backgrounds are used
_LISTS = {
    "clip_es": ("voc.yaml", "coco.yaml", "voc.yaml"),
    "clims": ("clims_voc.yaml", "clims_coco.yaml", "clims_voc.yaml"),
    "clims_camera_ready": ("clims_camera_ready.yaml", "clims_coco.yaml", "clims_voc.yaml"),
    "qa_clims": ("qa_clims_voc.yaml", "qa_clims_coco.yaml", "qa_clims_coco.yaml"),
    "corrclip": ("corrclip_voc.yaml", "corrclip_coco.yaml", "corrclip_voc.yaml"),
}
_KEYS = ("prompts", "names", "background", "cooccurring", "short", "synonyms")
_EXPECTED = (
    "YAML with `prompts` (class: text), and optionally `names` (class: text), `background` (a list of words), `cooccurring`, `short` "
    "and `synonyms` (class: words)"
)
_EXPECTED_LIST = "a list of words: a line for the background, then one for each class, with words separated by `;`"

# the templates of CLIP's authors for ImageNet
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.",
)  # fmt: skip

Lists = Literal["clip_es", "clims", "clims_camera_ready", "qa_clims", "corrclip"]


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
        source: a YAML file, a list of CorrCLIP (see `read_list`), or `auto`: the published lists for the classes of VOC and of COCO; for other
            classes, their names. Default backgrounds are those of COCO or else of VOC, without those that are classes.
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
    if path.suffix == ".txt":
        content = _of_list(path, class_names)
    else:
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


def read_list(path: Path) -> list[list[str]]:
    """The words of a list of CorrCLIP: one line for the background, then one for each class in order, with words separated by `;`.

    Raises:
        BadInput: a line has no word.
    """
    lines = [
        (number, [word.strip() for word in line.split(";") if word.strip()])
        for number, line in read_lines(path, _EXPECTED_LIST)
    ]
    for number, words in lines:
        if not words:
            raise BadInput(f"{path}, line {number}", "no word", _EXPECTED_LIST, "Correct it.")
    return [words for _, words in lines]


def _of_list(path: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """The content of a list of CorrCLIP, as that of a YAML file."""
    background, *of_classes = read_list(path) or [[]]
    if len(of_classes) != len(class_names):
        found = f"{len(of_classes)} lines after that of the background"
        raise BadInput(path, found, f"one for each of the {len(class_names)} classes, in their order", "Correct it.")
    plain = [_plain(name) for name in class_names]
    for number, (name, words) in enumerate(zip(plain, of_classes, strict=True), 2):
        other = next((word for word in map(_plain, words) if word in plain and word != name), None)
        if other is not None and name not in map(_plain, words):
            do = "Write the lines in the order of the classes."
            raise BadInput(f"{path}, line {number}", f"the class {other!r}", f"words for {name!r}", do)
    return {
        "names": {name: words[0] for name, words in zip(class_names, of_classes, strict=True)},
        "synonyms": {name: words[1:] for name, words in zip(class_names, of_classes, strict=True) if words[1:]},
        "background": background,
    }


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
