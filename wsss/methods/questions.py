"""Questions about pictures and the classes that they have, answered by BLIP (Li et al., ICML 2022), as QA-CLIMS asks them.

For each pair of a picture and a class that it has, six questions ask what else the class may be called there, and ten what is around it.
Answers are words, brought to the singular. They stand in `answers.jsonl`, one pair a line, and may be corrected by hand.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wsss import launch
from wsss.data.augment import normalise, resize_bicubic
from wsss.data.images import Images
from wsss.data.lists import read_lines, suggestion
from wsss.data.nouns import lemma
from wsss.data.words import check_templates, read_words
from wsss.errors import BadInput, check_range, reading
from wsss.foreign.npy import read_legacy
from wsss.networks.blip import BLIP
from wsss.pretrained import load_blip
from wsss.run import maybe_file, stage, unrecorded
from wsss.stages.each import for_each_picture, read_prepared
from wsss.storage import read_json, whole_file, write_json

ANSWERS = "answers.jsonl"

# get_blip_vqa_results.py; their order is that of the published files
FOREGROUND = (
    "What kind of {} is in the photo?",
    "What type of {} is in the photo?",
    "What is this {} also called?",
    "What is this {} usually called?",
    "What is another word for this {}?",
    "What is another name for this {}?",
)
BACKGROUND = (
    "what is above the {}?",
    "what is under the {}?",
    "what is behind the {}?",
    "what is around the {}?",
    "what is next to the {}?",
    "what is the left side of {}?",
    "what is the right side of {}?",
    "what scene is the {} in?",
    "what environment is the {} in?",
    "what place is the {} in?",
)
_LINE = (
    '{"image": "a", "class": "cat", "foreground": {"What kind of {} is in the photo?": "tabby"}, '
    '"background": {"what is under the {}?": "sofa"}}'
)
_PUBLISHED = "a published .npy file of answers: {image: {class: {'vqa': [(question, answer)], 'answers': [answer]}}}"
_FEATURES = "a published .npy file of text features"


class Answers(NamedTuple):
    """What was said about a class in a picture, in the singular.

    Attributes:
        foreground: what the class may be called there, in the order of the questions; repetitions count.
        background: what is around it.
    """

    foreground: tuple[str, ...]
    background: tuple[str, ...]


# answers by picture and class, as a file names them
Said = dict[tuple[str, str], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class QuestionSettings:
    """Who is asked, and what."""

    # its 24x24 positions were shrunk from the 30x30 of model_base_vqa_capfilt_large.pth, which the published answers are of
    blip: str = maybe_file("Salesforce/blip-vqa-capfilt-large")
    """a BLIP that answers questions: a hub id, a folder of Hugging Face transformers, or model_base_vqa_capfilt_large.pth"""
    vocabulary: str = maybe_file("google-bert/bert-base-uncased")
    """BERT's words, where `blip` brings none, as its .pth: a hub id, a folder, or vocab.txt"""
    words: str = maybe_file("auto")
    """how classes are called in questions: a YAML file with `prompts`, or auto"""
    size: int = 480
    """side that pictures are resized to, in pixels, their proportions not kept"""
    foreground: tuple[str, ...] = FOREGROUND
    """questions about a class's other names"""
    background: tuple[str, ...] = BACKGROUND
    """questions about what is around it"""
    batch: int = unrecorded(64)
    """most questions answered at a time"""

    def __post_init__(self) -> None:
        check_templates("foreground", self.foreground)
        check_templates("background", self.background)
        check_range("batch", self.batch, 1)
        asked = (*self.foreground, *self.background)
        if len(set(asked)) < len(asked):
            raise BadInput("foreground and background", "a question twice", "different questions", "Remove one.")

    def load(self) -> BLIP:
        """The network, on the CPU."""
        return load_blip(self.blip, self.vocabulary, self.size)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 s s"]:
        """A picture as BLIP takes it."""
        return torch.from_numpy(normalise(resize_bicubic(image, (self.size, self.size)), "clip"))[None]


@stage(kind="ask", makes="answers", title="BLIP")
def ask(settings: QuestionSettings, images: Images, *, out: Path) -> dict[str, Any]:
    """Write `answers.jsonl`: for each pair of a picture and a class that it has, answers by question, in the singular.

    Where the singular differs, `said` has what BLIP said. Each picture is encoded once for all of its questions; its
    answers are kept in `pictures/NAME.json` as soon as they are there, so a killed stage goes on.

    Raises:
        BadInput: BLIP or the words cannot be used, or a picture cannot be read.
    """
    names = read_words(settings.words, images.class_names, "qa_clims").prompts
    blip = settings.load().to(launch.device())
    folder = out / "pictures"

    def compute(index: int, loaded: tuple[Float[Tensor, "1 3 s s"], tuple[int, int]]) -> list[list[str]]:
        return _asked(settings, blip, loaded[0].to(launch.device()), [names[cls] for cls in images.classes(index)])

    load = partial(read_prepared, settings.prepare, images)
    tagged = np.flatnonzero(images.labels.any(1)).tolist()
    for_each_picture(images, folder, ".json", load, compute, _keep, title=f"ask {out.name}", chosen=tagged)
    launch.wait()
    return launch.decided_by_first(lambda: _join(settings, images, folder, out))


def _keep(path: Path, said: list[list[str]]) -> None:
    write_json(path, said, sync="file")


def _asked(settings: QuestionSettings, blip: BLIP, pixels: Tensor, names: Sequence[str]) -> list[list[str]]:
    """The answers to all questions about each of the names."""
    asked = (*settings.foreground, *settings.background)
    questions = [question.replace("{}", name) for name in names for question in asked]
    answers = blip.answers(pixels, questions, settings.batch)
    return [answers[start : start + len(asked)] for start in range(0, len(answers), len(asked))]


def _join(settings: QuestionSettings, images: Images, folder: Path, out: Path) -> dict[str, Any]:
    pairs = 0
    with whole_file(out / ANSWERS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for index, name in enumerate(images.names):
            classes = images.classes(index)
            answers = read_json(folder / f"{name}.json", "answers about a picture") if classes else []
            for cls, said in zip(classes, answers, strict=True):
                stream.write(_line(settings, name, images.class_names[cls], said) + "\n")
            pairs += len(classes)
    return {"images": len(images), "pairs": pairs}


def _line(settings: QuestionSettings, image: str, class_name: str, said: Sequence[str]) -> str:
    questions = (*settings.foreground, *settings.background)
    clean = {question: lemma(answer) for question, answer in zip(questions, said, strict=True)}
    changed = {q: answer for q, answer in zip(questions, said, strict=True) if answer != clean[q]}
    record: dict[str, Any] = {
        "image": image,
        "class": class_name,
        "foreground": {question: clean[question] for question in settings.foreground},
        "background": {question: clean[question] for question in settings.background},
    }
    if changed:
        record["said"] = changed
    # names that are not UTF-8 are lone surrogates, which JSON can write in ASCII alone
    plain = image.encode("utf-8", "replace").decode() == image
    return json.dumps(record, ensure_ascii=not plain)


def read_answers(path: Path, class_names: Sequence[str], spoken: Sequence[str]) -> tuple[Said, Said]:
    """The answers of `answers.jsonl` about other names, and those about surroundings.

    Args:
        path: the file, or the folder of the stage that wrote it.
        class_names: of the data set.
        spoken: how they are called in questions, which a line may name a class by too.

    Raises:
        BadInput: the file is missing, a line is broken, names no class, or comes twice; the line is named.
    """
    path = path / ANSWERS if path.is_dir() else path
    known = dict(zip(spoken, class_names, strict=True)) | {name: name for name in class_names}
    own: Said = {}
    around: Said = {}
    for number, text in read_lines(path, f"lines like {_LINE}"):
        where = f"{path}, line {number}"
        with reading(where, f"a line like {_LINE}", "Write the line again."):
            line = json.loads(text)
        if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in ("image", "class")):
            raise BadInput(where, f"{text[:60]}", f"a line like {_LINE}", "Write `image` and `class` as texts.")
        name = known.get(line["class"])
        if name is None:
            do = f"{suggestion(line['class'], known)}Correct the line."
            listed = ", ".join(class_names[:8])
            raise BadInput(where, f"the class {line['class']!r}", f"one of the data set's ({listed} ...)", do)
        pair = (line["image"], name)
        if pair in own:
            raise BadInput(where, f"{pair} again", "one line a picture and class", "Remove one of the two.")
        own[pair] = _texts(line.get("foreground"), "foreground", where)
        around[pair] = _texts(line.get("background"), "background", where)
    return own, around


def _texts(given: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(given, dict) or not all(isinstance(answer, str) for answer in given.values()):
        raise BadInput(where, f"{given!r:.60} as `{key}`", f"answers by question, as in {_LINE}", "Correct the line.")
    return tuple(given.values())


def read_published_answers(path: Path, questions: Sequence[str]) -> Said:
    """The answers to these questions of a published file (`voc_vqa_fg_blip.npy`), by picture and class, in the questions' order.

    As published, what was asked is looked up at the first pair.

    Raises:
        BadInput: the file is broken, or these questions were not asked.
    """
    content = _nested(path, read_legacy(path), _PUBLISHED)
    positions: list[int] = []
    found: Said = {}
    for key, entry in _pairs_in(path, content, _PUBLISHED):
        said, answers = (entry.get("vqa"), entry.get("answers")) if isinstance(entry, dict) else (None, None)
        if not (
            isinstance(said, list)
            and isinstance(answers, list)
            and len(said) == len(answers)
            and all(isinstance(item, tuple) and len(item) == 2 for item in said)
            and all(isinstance(answer, str) for answer in answers)
        ):
            raise BadInput(path, f"an entry {key} that is no list of answers", _PUBLISHED, "Fetch it again.")
        if not positions:
            asked = [question for question, _ in said]
            missing = [question for question in questions if question not in asked]
            if missing:
                do = "Give the file of foreground questions as `answers`, that of background ones as `background_answers`."
                raise BadInput(path, f"no answers to {missing[0]!r}", "answers to all questions", do)
            positions = [asked.index(question) for question in questions]
        if max(positions) >= len(answers):
            raise BadInput(path, f"an entry {key} with fewer answers than the first", _PUBLISHED, "Fetch it again.")
        found[key] = tuple(answers[position] for position in positions)
    return found


def read_published_background(path: Path, questions: Sequence[str]) -> tuple[Said, dict[str, Float[np.ndarray, " d"]]]:
    """The background answers of a published file, by picture and class, and text features by answer where it is a file of these.

    Raises:
        BadInput: the file is broken, or of another kind.
    """
    content = _nested(path, read_legacy(path), _PUBLISHED)
    if set(content) != {"profile", "feats"}:
        return read_published_answers(path, questions), {}
    answers: Said = {}
    features: dict[str, Float[np.ndarray, " d"]] = {}
    for key, entry in _pairs_in(path, _nested(path, content["feats"], _FEATURES), _FEATURES):
        texts, rows = (entry.get("answers"), entry.get("answer_feats")) if isinstance(entry, dict) else (None, None)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadInput(path, f"an entry {key} without answers", _FEATURES, "Fetch it again.")
        if rows is None:
            texts = []  # published training leaves such a pair out, whatever its answers
        elif not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2 or len(rows) != len(texts):
            raise BadInput(path, f"an entry {key} with other features than answers", _FEATURES, "Fetch it again.")
        answers[key] = tuple(texts)
        features.update(zip(texts, rows if rows is not None else (), strict=True))
    return answers, features


def read_published_features(path: Path) -> dict[str, Float[np.ndarray, " d"]]:
    """Text features by phrase, of a published file for the foreground (`voc_vqa_fg_blip_ViT-L-14_cache.npy`).

    Raises:
        BadInput: the file is broken, or of another kind.
    """
    features = {}
    for key, entry in _pairs_in(path, _nested(path, read_legacy(path), _FEATURES), _FEATURES):
        if not isinstance(entry, dict):
            raise BadInput(path, f"an entry {key} without phrases", _FEATURES, "Fetch it again.")
        for phrase, row in entry.items():
            if not isinstance(row, np.ndarray) or row.dtype.kind != "f" or row.ndim != 2 or len(row) != 1:
                raise BadInput(path, f"no feature of {phrase!r} at {key}", _FEATURES, "Fetch it again.")
            features[str(phrase)] = row[0]
    return features


def _nested(path: Path, content: Any, expected: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise BadInput(path, f"a {type(content).__name__}", expected, "Take another file.")
    return content


def _pairs_in(path: Path, content: Mapping[str, Any], expected: str) -> Iterator[tuple[tuple[str, str], Any]]:
    for image, classes in content.items():
        if not isinstance(classes, dict):
            raise BadInput(path, f"no classes below {image!r}", expected, "Take another file.")
        for name, entry in classes.items():
            yield (str(image), str(name)), entry


def of_images(images: Images, spoken: Sequence[str], own: Said, around: Said, where: str) -> list[dict[int, Answers]]:
    """For each picture, the answers about each class that it has.

    Args:
        images: the pictures.
        spoken: how classes are called in questions; files may have these names or those of the data set.
        own: answers about other names.
        around: answers about surroundings.
        where: where they come from, for the error.

    Raises:
        BadInput: a pair has none.
    """
    found: list[dict[int, Answers]] = []
    missing, total = [], 0
    for index, image in enumerate(images.names):
        found.append({})
        for cls in images.classes(index):
            total += 1
            said = [
                next(
                    (
                        answers[image, name]
                        for name in (images.class_names[cls], spoken[cls])
                        if (image, name) in answers
                    ),
                    None,
                )
                for answers in (own, around)
            ]
            if said[0] is None or said[1] is None:
                missing.append(f"{images.class_names[cls]!r} in {image!r}")
            else:
                found[-1][cls] = Answers(said[0], said[1])
    if missing:
        raise BadInput(
            where,
            f"no answers for {len(missing)} of {total} pairs of a picture and a class ({missing[0]} first)",
            f"answers about {images.title}",
            "Ask about these pictures and tags with `wsss ask`, or give the file that belongs to them.",
        )
    return found
