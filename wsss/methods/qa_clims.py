"""Question-answer cross language image matching for weakly supervised semantic segmentation (QA-CLIMS; Deng et al., ACM MM 2023).

CLIMS with texts from answers about each picture (`wsss.methods.questions`), and with a CLIP whose mask prompts mark the patches to use.
X = sigmoid(M) is the map of a class that a picture I has, M_f = [X >= alpha max X] and M_b = 1 - M_f (foreground adaptive
thresholding), E a CLIP with mask prompts, u_f and u_b the unit features of E(X I, M_f) and E((1 - X) I, M_b), f the pooled
features of the class's name and its alternative names, and b_l the unit features of the L answers about its surroundings:

    s = <u_f, f> / tau, s_l = <u_f, b_l> / tau,   FRC = -ln(e^s / (e^s + sum_l e^s_l))
    r = <u_b, f> / tau, r_l = <u_b, b_l> / tau,   BRC = -ln(m / (m + e^r)),  m = mean_l e^r_l
    L = a sum FRC + b sum BRC + c mean X

The sums are over the pairs of a picture and a class that have answers about the surroundings; the mean is over all pictures and classes.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss import launch
from wsss.arrays import Bool, Float, Int
from wsss.classifier import CAMNetwork, FromBaseline, TagObjective, load_baseline
from wsss.clip_regions import described, encode_image, in_chunks, input_size, pairs_of, to_clip
from wsss.data.images import Images
from wsss.data.nouns import lemma
from wsss.data.words import Words, check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.methods import clims, questions
from wsss.methods.cam import CAMInference
from wsss.methods.questions import Answers, QuestionSettings
from wsss.networks.clip import CLIP, ImageText
from wsss.networks.clip_resnet import ResNetCLIP
from wsss.pretrained import Activation, load_any_clip, load_prompted_clip
from wsss.recipe import Method, Need
from wsss.run import maybe_file, pretrained, unrecorded
from wsss.stages.train import Examples, Training
from wsss.supervision import PAIRS

ASK, SAME, ENCODE = "ask", "same", "encode"
# texts that CLIP encodes in one batch
_TEXTS = 256


class Prompted(NamedTuple):
    """A frozen CLIP, and the mask prompts that replace patches outside a mask.

    Attributes:
        clip: the network.
        tokens: mask prompts (depth, N, width), before the first block, after it, ..., after block depth - 1; None for a plain CLIP.
    """

    clip: ImageText | ResNetCLIP
    tokens: Float[Tensor, "depth n width"] | None

    def to(self, device: torch.device) -> "Prompted":
        """Move the CLIP and the prompts to a device."""
        return Prompted(self.clip.to(device), None if self.tokens is None else self.tokens.to(device))

    def encode(self, regions: Float[Tensor, "n 3 s s"], masks: Bool[Tensor, "n 1 s s"]) -> Float[Tensor, "n d"]:
        """Features of regions in the joint space, not normalised. Patches without a pixel of the mask are replaced by prompts; for a
        plain CLIP, pixels outside the mask are set to 0.
        """
        if self.tokens is None:
            return encode_image(self.clip, regions * masks)
        assert isinstance(self.clip, CLIP)
        visible = visible_patches(masks, self.clip.patch).flatten(1)[:, :, None]
        return encode_image(self.clip, regions, partial(_insert_prompts, self.tokens, visible))


def _insert_prompts(tokens: Tensor, visible: Tensor, depth: int, patches: Tensor) -> Tensor:
    return patches if depth >= len(tokens) else torch.where(visible, patches, tokens[depth].to(patches.dtype))


def visible_patches(masks: Bool[Tensor, "n 1 h w"], patch: int) -> Bool[Tensor, "n gh gw"]:
    """The patches that contain at least one pixel of a mask."""
    return F.max_pool2d(masks.float(), patch)[:, 0] > 0


def foreground_masks(x: Float[Tensor, "p 1 h w"], alpha: float) -> Bool[Tensor, "p 1 h w"]:
    """M_f: where a map is at least alpha times its maximum."""
    return x >= alpha * x.amax((2, 3), keepdim=True)


def regions(
    scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"], alpha: float
) -> tuple[Float[Tensor, "p 3 s s"], Float[Tensor, "p 3 s s"], Bool[Tensor, "p 1 s s"]]:
    """X I, (1 - X) I and M_f, with X at the pictures' size. Gradients flow through X, not through M_f."""
    x = F.interpolate(scores, pictures.shape[2:], mode="bilinear", align_corners=True)
    return x * pictures, (1 - x) * pictures, foreground_masks(x.detach(), alpha)


def encode_regions(
    prompted: Prompted, alpha: float, scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> Float[Tensor, "p 2 d"]:
    """Features of the object region and of the background region, not normalised."""
    objects, backgrounds, masks = regions(scores, pictures, alpha)
    both = prompted.encode(torch.cat([objects, backgrounds]), torch.cat([masks, ~masks]))
    return both.unflatten(0, (2, -1)).transpose(0, 1)


class PairTexts(NamedTuple):
    """Text features of pairs of a picture and a class.

    Attributes:
        name: f, of norm at most 1.
        surroundings: b_l, unit vectors, padded.
        valid: which rows of `surroundings` are not padding; at least one per pair.
    """

    name: Float[Tensor, "p d"]
    surroundings: Float[Tensor, "p l d"]
    valid: Bool[Tensor, "p l"]


def foreground_contrast(features: Float[Tensor, "p d"], texts: PairTexts, tau: float) -> Float[Tensor, " p"]:
    """FRC of the features of object regions, which need not be normalised."""
    s, others = _logits(features, texts, tau)
    return F.softplus(others.logsumexp(1) - s)


def background_contrast(features: Float[Tensor, "p d"], texts: PairTexts, tau: float) -> Float[Tensor, " p"]:
    """BRC of the features of background regions, which need not be normalised."""
    r, others = _logits(features, texts, tau)
    return F.softplus(r - others.logsumexp(1) + texts.valid.sum(1).to(r.dtype).log())


def _logits(features: Tensor, texts: PairTexts, tau: float) -> tuple[Float[Tensor, " p"], Float[Tensor, "p l"]]:
    unit = F.normalize(features, dim=1) / tau
    others = torch.einsum("pd,pld->pl", unit, texts.surroundings)
    return (unit * texts.name).sum(1), others.masked_fill(~texts.valid, -torch.inf)


@dataclasses.dataclass(frozen=True)
class QACLIMSWeights:
    """Weights of the losses; the defaults are those of the published code for VOC."""

    foreground: float = 10.0
    """a, weight of the contrastive loss of object regions"""
    background: float = 8.0
    """b, weight of the contrastive loss of background regions"""
    area: float = 0.2
    """c, weight of the mean of all maps, including those of absent classes"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f"weights.{field.name}", getattr(self, field.name), 0)


@dataclasses.dataclass(frozen=True)
class QACLIMSSettings(FromBaseline):
    """A CAM network fine-tuned with a frozen CLIP and with answers about the pictures; all batch-norm statistics are updated."""

    title: ClassVar[str] = "QA-CLIMS"

    answers: str = maybe_file(ASK)
    """`ask`: `wsss run` asks first; or the output of `wsss ask` (a folder or answers.jsonl), or published foreground answers (.npy)"""
    background_answers: str = maybe_file(SAME)
    """`same`: they are part of `answers`; or published background answers, or their text features (.npy)"""
    text_features: str = maybe_file(ENCODE)
    """`encode`, or published text features of the foreground (.npy); phrases that the file lacks are encoded"""
    # net/vqa_fg.py and net/vqa_bg.py match substrings, and remove only the class name itself
    answers_rule: Literal["published", "corrected"] = "published"
    """corrected: only whole words name a class (carpet is not car); words for the class, plurals and empty answers are not background"""
    words: str = maybe_file("auto")
    """names, short names and synonyms of the classes: a YAML file, or auto"""
    template: str = "a photo of {}."
    """sentence that phrases are inserted into"""
    # 0.5 each, parameters that are never trained
    name_weight: float = 0.5
    """weight of the class's name in its text feature; the rest is the mean over the answers, including repetitions"""
    clip: str = pretrained("ovseg_swinbase_vitL14_ft_mpt.pth", PAIRS)
    """OVSeg's checkpoint, or another CLIP with mask prompts; any CLIP that CLIMS accepts if `mask_prompts` is false"""
    mask_prompts: bool = True
    """replace patches outside a mask by CLIP's mask prompts; otherwise pixels outside it are set to 0"""
    activation: Activation = "quick_gelu"
    """activation of a CLIP checkpoint that does not record it"""
    # the published code passes pictures to CLIP that are normalised with ImageNet's mean and standard deviation, as CLIMS does
    clip_colours: Literal["same", "clip"] = "same"
    """normalisation of the regions given to CLIP: the same, or its own, as a SigLIP needs"""
    alpha: float = 0.1
    """threshold of the foreground, as a fraction of a map's maximum"""
    temperature: float = 0.7
    """tau, temperature of the contrastive losses"""
    weights: QACLIMSWeights = QACLIMSWeights()
    """weights of the losses"""
    # published: two processes with a batch of 4 each, whose gradients are averaged
    sum_over: int = 4
    """the first two losses are summed over the pairs of this number of pictures, and averaged over such groups in a larger batch"""
    regions: int = unrecorded(32)
    """maximum number of regions per CLIP batch, two per pair; a smaller number needs less memory and more time, and changes only rounding"""
    # IRNet's PolyOptimizer passes its weight decay to SGD as momentum, so the published numbers were obtained with 1e-4
    training: Training = Training(batch=8, epochs=15, lr=3.5e-4, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_templates("template", (self.template,))
        check_range("regions", self.regions, 2)
        check_range("sum_over", self.sum_over, 1)
        check_range("name_weight", self.name_weight, 0, 1)
        check_range("alpha", self.alpha, 0, 1)
        check_range("temperature", self.temperature, 1e-3)

    def read_words(self, images: Images) -> Words:
        """Names and synonyms of the classes."""
        return read_words(self.words, images.class_names, "qa_clims")

    def load_clip(self) -> Prompted:
        """The frozen CLIP, on the CPU.

        Raises:
            BadInput: it cannot be loaded, or is a SigLIP that would get pictures of other colours.
        """
        if self.mask_prompts:
            return Prompted(*load_prompted_clip(self.clip, self.activation))
        clip = load_any_clip(self.clip, self.activation)
        to_clip(clip, self.colours, self.clip_colours)
        return Prompted(clip, None)

    def check(self, images: Images) -> Path | None:
        """Raise BadInput for words, answers or a CLIP that cannot be used, before any stage runs.

        Returns:
            The weights that the training starts from; None if the run trains them first.
        """
        words = self.read_words(images)
        if self.answers != ASK:
            answers_of(self, images, words)
        self.load_clip()
        return self.continued

    def trainable(self, images: Images) -> "QACLIMSObjective":
        """The network with the weights of `init`, and its losses; CLIP is moved to the device.

        Raises:
            BadInput: weights, answers, words or CLIP cannot be used, or belong to other pictures or classes.
        """
        words = self.read_words(images)
        network, metadata = load_baseline(CAMNetwork, "qa_clims", self, images)
        answers, features = answers_of(self, images, words)
        prompted = self.load_clip().to(launch.device())
        texts = Texts(self, prompted.clip, words, answers, features, images).to(launch.device())
        return QACLIMSObjective(self, network, metadata, prompted, texts, images)


def answers_of(
    settings: QACLIMSSettings, images: Images, words: Words
) -> tuple[list[dict[int, Answers]], dict[str, Float[np.ndarray, " d"]]]:
    """For each picture the answers about its classes, and published text features by phrase.

    Raises:
        BadInput: the files cannot be used, or are about other pictures.
    """
    path, background_path = Path(settings.answers), Path(settings.background_answers)
    published = path.suffix == ".npy"
    if settings.answers == ASK:
        do = "Ask with `wsss ask` and give its folder, or use `wsss run qa_clims`, which does both."
        raise BadInput("answers", f"`{ASK}`, which only `wsss run` does", "answers about the pictures", do)
    if published and settings.background_answers == SAME:
        do = "Give the published background answers, or their text features, as `background_answers`."
        raise BadInput("background_answers", f"`{SAME}`, but {path} has none", "a file of background answers", do)
    background: questions.PairAnswers = {}
    features: dict[str, Float[np.ndarray, " d"]] = {}
    if published:
        foreground = questions.read_published_answers(path, questions.FOREGROUND)
    else:
        foreground, background = questions.read_answers(path, images.class_names, words.prompts)
    if settings.text_features != ENCODE:
        features |= questions.read_published_features(Path(settings.text_features))
    where = settings.answers
    if settings.background_answers != SAME:
        background, more = questions.read_published_background(background_path, questions.BACKGROUND)
        features |= more
        where = f"{where} and {background_path}"
    return questions.of_images(images, words.prompts, foreground, background, where), features


def singular(text: str) -> str:
    """A text in lower case, with each word in the singular."""
    return " ".join(lemma(word) for word in text.lower().split())


def phrases(answers: Sequence[str], name: str, short: Sequence[str], corrected: bool = False) -> list[str]:
    """Alternative names of a class: the answers; the class name is appended to those that contain neither it nor a short form.

    Args:
        answers: to the foreground questions.
        name: of the class.
        short: short forms of the name.
        corrected: match whole words, singular or plural; otherwise substrings, as published.
    """
    accepted = (*short, name)
    if not corrected:
        return [answer if any(word in answer for word in accepted) else f"{answer} {name}" for answer in answers]
    words = [f" {singular(word)} " for word in accepted]
    return [
        answer if any(word in f" {singular(answer)} " for word in words) else f"{answer} {name}" for answer in answers
    ]


def surroundings(answers: Sequence[str], name: str, synonyms: Sequence[str], corrected: bool = False) -> list[str]:
    """The surroundings of a class: answers without repetitions, and without the class itself.

    Args:
        answers: to the background questions.
        name: of the class.
        synonyms: other words for the class.
        corrected: also leave out empty answers, synonyms and plurals; otherwise only the exact name, as published.
    """
    distinct = dict.fromkeys(answers)
    if not corrected:
        return [answer for answer in distinct if answer != name]
    class_words = {singular(word) for word in (name, *synonyms)}
    return [answer for answer in distinct if answer.strip() and singular(answer) not in class_words]


class Texts(nn.Module):
    """Text features of all pairs of a dataset: a table with one row per phrase, and the rows that belong to each pair.

    Args:
        settings: of the method.
        clip: encodes the phrases that are not in `features`.
        words: names, short names and synonyms of the classes.
        answers: for each picture, about each class that it has.
        features: published text features, by phrase.
        images: the pictures.

    Raises:
        BadInput: published features come from another CLIP.
    """

    def __init__(
        self,
        settings: QACLIMSSettings,
        clip: ImageText | ResNetCLIP,
        words: Words,
        answers: list[dict[int, Answers]],
        features: dict[str, Float[np.ndarray, " d"]],
        images: Images,
    ) -> None:
        super().__init__()
        corrected = settings.answers_rule == "corrected"
        self.name_weight, n_classes = settings.name_weight, len(words.prompts)
        rows: dict[str, int] = {}
        name_rows: list[list[int]] = []
        background_rows: list[list[int]] = []
        pair_of = np.full((len(answers), n_classes), -1, np.int32)
        for index, of_image in enumerate(answers):
            for cls, (foreground, background) in of_image.items():
                name, short, synonyms = words.prompts[cls], words.short[cls], words.synonyms[cls]
                pair_of[index, cls] = len(name_rows)
                for texts, into in (
                    (phrases(foreground, name, short, corrected), name_rows),
                    (surroundings(background, name, (*short, *synonyms), corrected), background_rows),
                ):
                    # the class names have the first rows
                    into.append([rows.setdefault(text, n_classes + len(rows)) for text in texts])
        encode = partial(_encoded, clip, settings.template)
        names = encode(words.prompts)
        missing = [text for text in rows if text not in features]
        encoded = dict(zip(missing, encode(missing), strict=True))
        for text in rows.keys() - encoded.keys():
            encoded[text] = torch.tensor(features[text], dtype=names.dtype)
            if encoded[text].shape != names[0].shape:
                found, do = f"a text feature of {len(encoded[text])} numbers", "Give features of this CLIP, or none."
                raise BadInput(settings.text_features, found, f"{names.shape[1]}, like those of {settings.clip}", do)
        self.table: Tensor
        self.name_rows: Tensor
        self.background_rows: Tensor
        self.pair_of: Tensor
        for key, value in (
            ("table", torch.stack([*names, *(encoded[text] for text in rows)])),
            ("name_rows", _padded(name_rows)),
            ("background_rows", _padded(background_rows)),
            ("pair_of", torch.from_numpy(pair_of)),
        ):
            self.register_buffer(key, value, persistent=False)

    def forward(self, index: Int[Tensor, " p"], classes: Int[Tensor, " p"]) -> PairTexts:
        pair = self.pair_of[index, classes]
        name_rows, background_rows, name = self.name_rows[pair], self.background_rows[pair], self.table[classes]
        valid = name_rows >= 0
        total = (self.table[name_rows.clamp_min(0)] * valid[:, :, None]).sum(1)
        # without any answer, the class name replaces their mean
        mean = torch.where(valid.any(1, keepdim=True), total / valid.sum(1, keepdim=True).clamp_min(1), name)
        pooled = self.name_weight * name + (1 - self.name_weight) * mean
        return PairTexts(pooled, self.table[background_rows.clamp_min(0)], background_rows >= 0)


def _encoded(clip: ImageText | ResNetCLIP, template: str, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    """Unit features of phrases, on the CPU. Phrases longer than the context (77 tokens for OpenAI's networks) are truncated."""
    device = next(clip.parameters()).device
    parts = [torch.zeros(0, 0)]
    for start in range(0, len(texts), _TEXTS):
        prompts = [template.replace("{}", text) for text in texts[start : start + _TEXTS]]
        with torch.no_grad():
            parts.append(F.normalize(clip.encode_text(clip.vocabulary(prompts, truncate=True).to(device)), dim=1).cpu())
    return torch.cat(parts[1:] or parts)


def _padded(rows: list[list[int]]) -> Int[Tensor, "n m"]:
    """Lists of different lengths, padded with -1; at least one column and one row."""
    longest = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows or [[]]], dtype=torch.int32)


class QACLIMSObjective(TagObjective[QACLIMSSettings, CAMNetwork]):
    """The three losses, over the pairs of all processes.

    Args:
        settings: of the method.
        network: its frozen layers are already set.
        metadata: written with its weights.
        prompted: frozen, on the device; it is neither trained nor saved.
        texts: returns the `PairTexts` of picture indices and classes, as `Texts` does; on the device.
        images: the training pictures.
    """

    def __init__(
        self,
        settings: QACLIMSSettings,
        network: CAMNetwork,
        metadata: dict[str, Any],
        prompted: Prompted,
        texts: nn.Module,
        images: Images,
    ) -> None:
        super().__init__(settings, images, network, metadata | described(prompted.clip, "cosine"))
        self.examples = partial(_numbered, self.examples)
        # hidden in partials: submodules would be saved, and their buffers sent to all processes in each step
        self.texts = partial(texts)
        self.encode, self.size = partial(encode_regions, prompted, settings.alpha), input_size(prompted.clip)
        self.scale: Tensor
        self.shift: Tensor
        for name, value in zip(
            ("scale", "shift"), to_clip(prompted.clip, settings.colours, settings.clip_colours), strict=True
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        raw = self.network.maps(batch["image"])
        scores = raw.to(torch.promote_types(raw.dtype, torch.float32)).sigmoid()
        return self.losses(scores, batch["image"], batch["label"], batch["index"])

    def losses(
        self,
        scores: Float[Tensor, "b c h w"],
        image: Float[Tensor, "b 3 hi wi"],
        label: Float[Tensor, "b c"],
        index: Int[Tensor, " b"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of maps X in [0, 1]; the first two are 0 if no pair has answers about its surroundings."""
        weights, (rows, classes) = self.settings.weights, pairs_of(label)
        texts: PairTexts = self.texts(index[rows], classes)
        usable = texts.valid.any(1)
        rows, classes, texts = rows[usable], classes[usable], PairTexts(*(part[usable] for part in texts))
        contrasts = scores.new_zeros(2, 0)
        if len(rows):
            features = self._features(scores[rows, classes][:, None], image, rows)
            with torch.autocast(scores.device.type, enabled=False):
                objects, backgrounds = features.to(texts.name.dtype).unbind(1)
                tau = self.settings.temperature
                contrasts = torch.stack(
                    [foreground_contrast(objects, texts, tau), background_contrast(backgrounds, texts, tau)]
                )
        # processes have equal shares of the batch, so the mean over the processes is the mean over all groups
        group = min(self.settings.sum_over, launch.processes() * len(label))
        foreground, background = contrasts.sum(1) * (group / len(label))
        return {
            "foreground": weights.foreground * foreground,
            "background": weights.background * background,
            "area": weights.area * scores.mean(),
        }

    def _features(
        self, scores: Float[Tensor, "p 1 h w"], image: Float[Tensor, "b 3 hi wi"], rows: Int[Tensor, " p"]
    ) -> Float[Tensor, "p 2 d"]:
        size = (self.size, self.size)
        pictures = F.interpolate(image, size, mode="bilinear", align_corners=True) * self.scale + self.shift
        return in_chunks(self.encode, self.settings.regions // 2, scores, pictures[rows])


def _numbered(examples: Examples, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
    return {**examples(index, rng), "index": torch.tensor(index)}


@dataclasses.dataclass(frozen=True)
class QACLIMSInference(CAMInference):
    """How the network's maps are computed: ReLU of the raw maps, as in CLIMS; also of a published checkpoint (`res50_qa_clims.pth`)."""

    title: ClassVar[str] = "QA-CLIMS"


def ask_questions(settings: QuestionSettings, images: Images, out: Path) -> Path:
    """Ask the questions about the pictures, and return the file of answers."""
    return questions.ask(settings, images, out=out) / questions.ANSWERS


METHOD = Method(
    name="qa_clims",
    paper="QA-CLIMS (Deng et al., ACM MM 2023), CLIMS with answers about each picture",
    needs={
        "questions": Need(
            QuestionSettings(),
            ask_questions,
            "answers",
            ASK,
            "questions about the pictures, and the network that answers",
        ),
        **clims.METHOD.needs,
    },
    classifier=QACLIMSSettings(),
    inference=QACLIMSInference(),
    # the settings of CLIMS for VOC, also used for COCO
    refiner=clims.METHOD.refiner,
)
