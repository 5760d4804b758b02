"""Questions about pictures and the classes that they have, answered by BLIP (Li et al., ICML 2022), as QA-CLIMS asks them.

For each pair of a picture and a class that it has, six questions ask for other names of the object, and ten for its surroundings.
Answers are put into the singular and written to `answers.jsonl`, one line per pair. The file may be corrected by hand.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.data.augment import normalise, resize_bicubic
from wsss.data.images import Images
from wsss.data.lists import suggestion
from wsss.data.nouns import lemma
from wsss.data.text import read_lines
from wsss.data.words import check_templates, read_words
from wsss.errors import BadInput, check_range, reading
from wsss.foreign.npy import read_legacy
from wsss.networks.blip import BEAMS, BLIP, QUESTION_TOKENS
from wsss.networks.receptive import OF_CHANNEL
from wsss.pretrained import load_blip
from wsss.run import maybe_file, pretrained, stage, unrecorded
from wsss.stages.each import for_each_picture, read_prepared, within_budget
from wsss.storage import read_json, whole_file, write_json
from wsss.supervision import PAIRS

ANSWERS = "answers.jsonl"

# get_blip_vqa_results.py; in the order of the published files
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
    """The answers about a class in a picture, in the singular.

    Attributes:
        foreground: other names, in the order of the questions, with repetitions.
        background: surroundings.
    """

    foreground: tuple[str, ...]
    background: tuple[str, ...]


# answers by picture name and class name, as written in a file
PairAnswers = dict[tuple[str, str], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class QuestionSettings:
    """The questions, and the network that answers them."""

    # its 24x24 positions were interpolated from the 30x30 of model_base_vqa_capfilt_large.pth, which gave the published answers
    blip: str = pretrained("Salesforce/blip-vqa-capfilt-large", PAIRS)
    """a BLIP for question answering: a Hugging Face hub id, a folder saved by transformers, or model_base_vqa_capfilt_large.pth"""
    vocabulary: str = maybe_file("google-bert/bert-base-uncased")
    """BERT's vocabulary, if `blip` comes without one (a .pth file): a hub id, a folder, or vocab.txt"""
    words: str = maybe_file("auto")
    """class names used in questions: a YAML file with `prompts`, or auto"""
    size: int = 480
    """side that pictures are resized to, in pixels, without keeping the aspect ratio"""
    foreground: tuple[str, ...] = FOREGROUND
    """questions about other names of a class"""
    background: tuple[str, ...] = BACKGROUND
    """questions about the surroundings of a class"""
    batch: int = unrecorded(64)
    """maximum number of questions answered in one batch"""

    def __post_init__(self) -> None:
        check_templates("foreground", self.foreground)
        check_templates("background", self.background)
        check_range("batch", self.batch, 1)
        asked = (*self.foreground, *self.background)
        if len(set(asked)) < len(asked):
            raise BadInput("foreground and background", "a question twice", "distinct questions", "Remove one.")

    def check(self, images: Images) -> None:
        """Raise BadInput for a network that cannot be used, before any stage runs."""
        self.load()

    def load(self) -> BLIP:
        """The network, on the CPU."""
        return load_blip(self.blip, self.vocabulary, self.size)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 s s"]:
        """A picture as input of BLIP."""
        return torch.from_numpy(normalise(resize_bicubic(image, (self.size, self.size)), "clip"))[None]

    def bytes_for(self, size_hw: tuple[int, int], blip: BLIP) -> float:
        """About the bytes that a picture of this height and width takes, from when it is read until its answers are written."""
        vision, text = blip.model.config.vision_config, blip.model.config.text_config
        tokens = (self.size // vision.patch_size) ** 2 + 1
        # a block: activations, and the attention of all heads
        seeing = tokens * (OF_CHANNEL * vision.hidden_size + 12 * tokens * vision.num_attention_heads)
        keys = 8 * tokens * text.hidden_size * text.num_hidden_layers
        states = self.batch * QUESTION_TOKENS * OF_CHANNEL * text.hidden_size
        # of each question in a batch: attention to the picture, and words of the beams of an answer
        asking = self.batch * (12 * QUESTION_TOKENS * tokens * text.num_attention_heads + 24 * BEAMS * text.vocab_size)
        return 3 * math.prod(size_hw) + 24 * self.size**2 + max(seeing, states + asking) + keys


@stage(kind="ask", makes="answers", title="BLIP")
def ask(settings: QuestionSettings, images: Images, *, out: Path) -> dict[str, int]:
    """Write `answers.jsonl`: for each pair of a picture and a class that it has, answers by question, in the singular.

    If an answer was changed to its singular, `said` has BLIP's original answer. Each picture is encoded once for all of its
    questions. Its answers are written to `pictures/NAME.json` at once, so a killed stage can be resumed.

    Raises:
        BadInput: BLIP or the words cannot be used, or a picture cannot be read.
    """
    names = read_words(settings.words, images.class_names, "qa_clims").prompts
    blip = settings.load().to(launch.device())
    folder = out / "pictures"

    def compute(index: int, loaded: tuple[Float[Tensor, "1 3 s s"], tuple[int, int]]) -> list[list[str]]:
        return _answers(settings, blip, loaded[0].to(launch.device()), [names[cls] for cls in images.classes(index)])

    load = partial(read_prepared, settings.prepare, images)
    tagged = np.flatnonzero(images.labels.any(1)).tolist()
    needs = within_budget(images, lambda _, size_hw: settings.bytes_for(size_hw, blip), ", or set a smaller batch")
    title = f"ask {out.name}"
    for_each_picture(images, folder, ".json", load, compute, _write, title=title, chosen=tagged, needs=needs)
    launch.wait()
    return launch.decided_by_first(lambda: _join(settings, images, folder, out))


def _write(path: Path, answers: list[list[str]]) -> None:
    write_json(path, answers, sync="file")


def _answers(settings: QuestionSettings, blip: BLIP, pixels: Tensor, names: Sequence[str]) -> list[list[str]]:
    """The answers to all questions about each of the names."""
    asked = (*settings.foreground, *settings.background)
    questions = [question.replace("{}", name) for name in names for question in asked]
    answers = blip.answers(pixels, questions, settings.batch)
    return [answers[start : start + len(asked)] for start in range(0, len(answers), len(asked))]


def _join(settings: QuestionSettings, images: Images, folder: Path, out: Path) -> dict[str, int]:
    pairs = 0
    with whole_file(out / ANSWERS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for index, name in enumerate(images.names):
            classes = images.classes(index)
            answers = read_json(folder / f"{name}.json", "answers about a picture") if classes else []
            for cls, of_class in zip(classes, answers, strict=True):
                stream.write(_line(settings, name, images.class_names[cls], of_class) + "\n")
            pairs += len(classes)
    return {"images": len(images), "pairs": pairs}


def _line(settings: QuestionSettings, image: str, class_name: str, answers: Sequence[str]) -> str:
    questions = (*settings.foreground, *settings.background)
    clean = {question: lemma(answer) for question, answer in zip(questions, answers, strict=True)}
    changed = {q: answer for q, answer in zip(questions, answers, strict=True) if answer != clean[q]}
    record: dict[str, object] = {
        "image": image,
        "class": class_name,
        "foreground": {question: clean[question] for question in settings.foreground},
        "background": {question: clean[question] for question in settings.background},
    }
    if changed:
        record["said"] = changed
    # names that are not UTF-8 contain lone surrogates, which JSON can only write as ASCII escapes
    plain = image.encode("utf-8", "replace").decode() == image
    return json.dumps(record, ensure_ascii=not plain)


def read_answers(path: Path, class_names: Sequence[str], prompts: Sequence[str]) -> tuple[PairAnswers, PairAnswers]:
    """The foreground answers and the background answers of `answers.jsonl`.

    Args:
        path: the file, or the folder of the stage that wrote it.
        class_names: of the dataset.
        prompts: the names of the classes in questions, which a line may use too.

    Raises:
        BadInput: the file is missing, or a line is broken, has an unknown class, or repeats a pair; the line number is given.
    """
    path = path / ANSWERS if path.is_dir() else path
    known = dict(zip(prompts, class_names, strict=True)) | {name: name for name in class_names}
    foreground: PairAnswers = {}
    background: PairAnswers = {}
    for number, text in read_lines(path, f"lines like {_LINE}"):
        where = f"{path}, line {number}"
        with reading(where, f"a line like {_LINE}", "Write the line again."):
            line = json.loads(text)
        if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in ("image", "class")):
            raise BadInput(where, f"{text[:60]}", f"a line like {_LINE}", "Write `image` and `class` as strings.")
        name = known.get(line["class"])
        if name is None:
            do = f"{suggestion(line['class'], known)}Correct the line."
            listed = ", ".join(class_names[:8])
            raise BadInput(where, f"the class {line['class']!r}", f"one of the dataset's ({listed} ...)", do)
        pair = (line["image"], name)
        if pair in foreground:
            raise BadInput(where, f"{pair} again", "one line per picture and class", "Remove one of the two.")
        foreground[pair] = _texts(line.get("foreground"), "foreground", where)
        background[pair] = _texts(line.get("background"), "background", where)
    return foreground, background


def _texts(given: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(given, dict) or not all(isinstance(answer, str) for answer in given.values()):
        raise BadInput(where, f"{given!r:.60} as `{key}`", f"answers by question, as in {_LINE}", "Correct the line.")
    return tuple(given.values())


def read_published_answers(path: Path, questions: Sequence[str]) -> PairAnswers:
    """The answers to these questions in a published file (`voc_vqa_fg_blip.npy`), by picture and class, in the order of the questions.

    As in the published code, the positions of the questions are those of the first pair.

    Raises:
        BadInput: the file is broken, or does not contain these questions.
    """
    content = _nested(path, read_legacy(path), _PUBLISHED)
    positions: list[int] = []
    found: PairAnswers = {}
    for key, entry in _pairs_in(path, content, _PUBLISHED):
        asked, answers = (entry.get("vqa"), entry.get("answers")) if isinstance(entry, dict) else (None, None)
        if not (
            isinstance(asked, list)
            and isinstance(answers, list)
            and len(asked) == len(answers)
            and all(isinstance(item, tuple) and len(item) == 2 for item in asked)
            and all(isinstance(answer, str) for answer in answers)
        ):
            raise BadInput(path, f"an entry {key} that is no list of answers", _PUBLISHED, "Download it again.")
        if not positions:
            order = [question for question, _ in asked]
            missing = [question for question in questions if question not in order]
            if missing:
                do = "Give the foreground file as `answers`, and the background file as `background_answers`."
                raise BadInput(path, f"no answers to {missing[0]!r}", "answers to all questions", do)
            positions = [order.index(question) for question in questions]
        if max(positions) >= len(answers):
            raise BadInput(path, f"an entry {key} with fewer answers than the first", _PUBLISHED, "Download it again.")
        found[key] = tuple(answers[position] for position in positions)
    return found


def read_published_background(
    path: Path, questions: Sequence[str]
) -> tuple[PairAnswers, dict[str, Float[np.ndarray, " d"]]]:
    """The background answers of a published file, by picture and class, and text features by answer if the file has them.

    Raises:
        BadInput: the file is broken, or has another content.
    """
    content = _nested(path, read_legacy(path), _PUBLISHED)
    if set(content) != {"profile", "feats"}:
        return read_published_answers(path, questions), {}
    answers: PairAnswers = {}
    features: dict[str, Float[np.ndarray, " d"]] = {}
    for key, entry in _pairs_in(path, _nested(path, content["feats"], _FEATURES), _FEATURES):
        texts, rows = (entry.get("answers"), entry.get("answer_feats")) if isinstance(entry, dict) else (None, None)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadInput(path, f"an entry {key} without answers", _FEATURES, "Download it again.")
        if rows is None:
            texts = []  # the published training skips such a pair, whatever its answers
        elif not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2 or len(rows) != len(texts):
            raise BadInput(path, f"an entry {key} with other features than answers", _FEATURES, "Download it again.")
        answers[key] = tuple(texts)
        features.update(zip(texts, rows if rows is not None else (), strict=True))
    return answers, features


def read_published_features(path: Path) -> dict[str, Float[np.ndarray, " d"]]:
    """Text features by phrase, from a published foreground file (`voc_vqa_fg_blip_ViT-L-14_cache.npy`).

    Raises:
        BadInput: the file is broken, or has another content.
    """
    features = {}
    for key, entry in _pairs_in(path, _nested(path, read_legacy(path), _FEATURES), _FEATURES):
        if not isinstance(entry, dict):
            raise BadInput(path, f"an entry {key} without phrases", _FEATURES, "Download it again.")
        for phrase, row in entry.items():
            if not isinstance(row, np.ndarray) or row.dtype.kind != "f" or row.ndim != 2 or len(row) != 1:
                raise BadInput(path, f"no feature of {phrase!r} at {key}", _FEATURES, "Download it again.")
            features[str(phrase)] = row[0]
    return features


def _nested(path: Path, content: object, expected: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise BadInput(path, f"a {type(content).__name__}", expected, "Give another file.")
    return content


def _pairs_in(path: Path, content: Mapping[str, Any], expected: str) -> Iterator[tuple[tuple[str, str], Any]]:
    for image, classes in content.items():
        if not isinstance(classes, dict):
            raise BadInput(path, f"no classes below {image!r}", expected, "Give another file.")
        for name, entry in classes.items():
            yield (str(image), str(name)), entry


def of_images(
    images: Images, prompts: Sequence[str], foreground: PairAnswers, background: PairAnswers, where: str
) -> list[dict[int, Answers]]:
    """For each picture, the answers about each class that it has.

    Args:
        images: the pictures.
        prompts: the names of the classes in questions; files may have these names or those of the dataset.
        foreground: answers about other names.
        background: answers about surroundings.
        where: the source of the answers, for the error.

    Raises:
        BadInput: a pair has no answers.
    """
    found: list[dict[int, Answers]] = []
    missing, total = [], 0
    for index, image in enumerate(images.names):
        found.append({})
        for cls in images.classes(index):
            total += 1
            names = (images.class_names[cls], prompts[cls])
            alternatives, surroundings = (_answers_about(image, names, answers) for answers in (foreground, background))
            if alternatives is None or surroundings is None:
                missing.append(f"{images.class_names[cls]!r} in {image!r}")
            else:
                found[-1][cls] = Answers(alternatives, surroundings)
    if missing:
        raise BadInput(
            where,
            f"no answers for {len(missing)} of {total} pairs of a picture and a class ({missing[0]} first)",
            f"answers about {images.title}",
            "Ask about these pictures and tags with `wsss ask`, or give the file that belongs to them.",
        )
    return found


def _answers_about(image: str, names: Sequence[str], answers: PairAnswers) -> tuple[str, ...] | None:
    return next((answers[image, name] for name in names if (image, name) in answers), None)
