"""CLIMS: cross language image matching for weakly supervised semantic segmentation (Xie et al., CVPR 2022).

A CAM network is fine-tuned with a frozen CLIP, which encodes the regions that the network's maps mask out. X = sigmoid(M) are the
maps of a picture I. For each pair p of a picture and a class that it has, O_p = X_c I is the object region and G_p = (1 - X_c) I the
background region; f are their unit image features and t unit text features:

    a_p = <f(O_p), t_c>,  b_p = <f(G_p), t_c>,  r_pm = <f(O_p), t_m> for the words m that co-occur with the class
    L = alpha mean(-ln a_p) + beta mean(-ln(1 - b_p)) + gamma sum([r_pm > tau] -ln(1 - r_pm)) + delta mean(X)

The paper sums the first two terms over a picture's classes. The published code, which reaches better results, takes means over
the pairs, one list of words for all classes, and the threshold tau. The camera-ready version is the code of the paper's results.

For a SigLIP, a, b and r are the probabilities sigmoid(s <f, t> + b) that it was trained with, by the same losses.
"""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss import launch
from wsss.arrays import Bool, Float, Int
from wsss.classifier import (
    BASELINE,
    KIND,
    CAMLocalizer,
    CAMNetwork,
    FromBaseline,
    MultiScale,
    check_baseline,
    check_colours,
    example,
    load_baseline,
    trained_classifier,
)
from wsss.classifier import load as load_cam
from wsss.clip_regions import described, encode_image, in_chunks, input_size, pair_mean, pairs_of, regions, to_clip
from wsss.data.images import Images
from wsss.data.lists import suggestion
from wsss.data.words import Words, check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.loading import load_backbone, load_into
from wsss.methods.cam import CAMSettings, baseline
from wsss.networks.clip import ImageText
from wsss.networks.clip_resnet import ResNetCLIP
from wsss.networks.resnet import DEPTHS, Bottleneck, ResNet
from wsss.networks.siglip import SigLIP
from wsss.objective import Groups, Objective, body_and_head, one_group
from wsss.pretrained import Activation, load_any_clip
from wsss.recipe import Method
from wsss.refiners.irnet import IRNetSettings, IRNetWalk
from wsss.run import maybe_file, pretrained, unrecorded
from wsss.stages.train import Training
from wsss.supervision import PAIRS
from wsss.weights import State, trained_weights

# clip_loss.py; there is no gradient outside this range
LOWEST, HIGHEST = 1e-4, 0.9999

Variant = Literal["improved", "camera-ready"]
Span = tuple[float, float]


def object_text_loss(similarity: Float[Tensor, " p"], span: Span = (LOWEST, HIGHEST)) -> Float[Tensor, " p"]:
    """-ln a_p, with a_p clamped to the span."""
    return -similarity.clamp(*span).log()


def background_text_loss(similarity: Float[Tensor, " p"], span: Span = (LOWEST, HIGHEST)) -> Float[Tensor, " p"]:
    """-ln(1 - b_p), with b_p clamped to the span."""
    return -torch.log1p(-similarity.clamp(*span))


def suppression_loss(
    similarity: Float[Tensor, "p m"], words: Bool[Tensor, "p m"], threshold: float | None
) -> Float[Tensor, " p"]:
    """Sum over the words m of a pair of [r_pm > tau] -ln(1 - r_pm).

    Args:
        similarity: r.
        words: which words co-occur with the pair's class.
        threshold: tau; None: the mean over all words of the pair, as in the camera-ready version; 0 if it has none.
    """
    counted = words if threshold is None else words & (similarity > threshold)
    total = -torch.log1p(-similarity.where(counted, 0)).sum(1)
    return total if threshold is not None else total / words.sum(1).clamp_min(1)


class Cosines(NamedTuple):
    """The losses of pairs of a region and a text, from their cosine similarity, which is taken as a probability.

    Attributes:
        object_span, background_span: see the losses.
        threshold: tau; None: the mean over all words.
    """

    object_span: Span
    background_span: Span
    threshold: float | None

    def matching(self, cosines: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """For a region that should match its text."""
        return object_text_loss(cosines, self.object_span)

    def differing(self, cosines: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """For a region that should not."""
        return background_text_loss(cosines, self.background_span)

    def suppression(self, cosines: Float[Tensor, "p m"], words: Bool[Tensor, "p m"]) -> Float[Tensor, " p"]:
        """For words that should not match a region."""
        return suppression_loss(cosines, words, self.threshold)


class Probabilities(NamedTuple):
    """The same losses of SigLIP's probabilities sigmoid(scale <f, t> + bias); their logarithms are exact, so nothing is clamped.

    Attributes:
        scale, bias: of the SigLIP.
        threshold: tau, a probability; None: the mean over all words.
    """

    scale: float
    bias: float
    threshold: float | None

    def matching(self, cosines: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """For a region that should match its text."""
        return F.softplus(-(self.scale * cosines + self.bias))

    def differing(self, cosines: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """For a region that should not."""
        return F.softplus(self.scale * cosines + self.bias)

    def suppression(self, cosines: Float[Tensor, "p m"], words: Bool[Tensor, "p m"]) -> Float[Tensor, " p"]:
        """For words that should not match a region."""
        logits = self.scale * cosines + self.bias
        counted = words if self.threshold is None else words & (logits.sigmoid() > self.threshold)
        total = F.softplus(logits).where(counted, 0).sum(1)
        return total if self.threshold is not None else total / words.sum(1).clamp_min(1)


def encode_regions(
    clip: ImageText | ResNetCLIP, scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> Float[Tensor, "p 2 d"]:
    """Features of the object region and of the background region, not normalised."""
    both = torch.cat(regions(scores, pictures))
    return encode_image(clip, both).unflatten(0, (2, -1)).transpose(0, 1)


@dataclasses.dataclass(frozen=True)
class CLIMSWeights:
    """Weights of the losses; the defaults are those of the published code for VOC."""

    object_text: float = 10.0
    """alpha, weight of the matching loss of object regions and class names"""
    background_text: float = 24.0
    """beta, weight of the matching loss of background regions and class names"""
    suppression: float = 1.0
    """gamma, weight of the suppression of co-occurring backgrounds; this loss is a sum over all pairs, so it grows with the batch"""
    area: float = 0.2
    """delta, weight of the mean of all maps, including those of absent classes"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f"weights.{field.name}", getattr(self, field.name), 0)


@dataclasses.dataclass(frozen=True)
class CLIMSSettings(FromBaseline):
    """A CAM network fine-tuned with a frozen CLIP; all batch-norm statistics are updated, and `frozen` applies to the improved version."""

    title: ClassVar[str] = "CLIMS"

    variant: Variant = "improved"
    """the later published code, or the camera-ready code of the paper; layers and losses differ"""
    clip: str = pretrained("openai/clip-vit-base-patch32", PAIRS)
    """a Hugging Face hub id or a folder, also of a SigLIP, or a file of OpenAI (ViT-B-32.pt, RN50x4.pt) or open_clip"""
    activation: Activation = "quick_gelu"
    """activation of an open_clip state dict, which does not record it: gelu for most of them"""
    words: str = maybe_file("auto")
    """texts of the classes and of co-occurring backgrounds: a YAML file, or auto for the lists of CLIMS"""
    # with a full stop and without an article, as in clip_utils.py
    template: str = "a photo of {}."
    """sentence that the texts are inserted into"""
    # the published code passes pictures to CLIP that are normalised with ImageNet's mean and standard deviation
    clip_colours: Literal["same", "clip"] = "same"
    """normalisation of the regions given to CLIP: the same, or its own, as a SigLIP needs"""
    weights: CLIMSWeights = CLIMSWeights()
    """weights of the losses"""
    # 0.26 is the default of clip_loss.py, which no script for VOC overrides
    threshold: float | None = 0.26
    """tau, the similarity (for a SigLIP: probability) above which a word is suppressed; null: the mean over a class's words, as camera-ready"""
    emphasised: tuple[str, ...] = ()
    """classes with a larger weight in the two matching losses"""
    emphasis: float = 3.0
    """weight of these classes; all others have 1"""
    regions: int = unrecorded(128)
    """maximum number of regions per CLIP batch, two per pair; a smaller number needs less memory and more time, and changes only rounding"""
    # IRNet's PolyOptimizer passes its weight decay to SGD as momentum, so the published numbers were obtained with 1e-4
    training: Training = Training(batch=16, epochs=15, lr=2.5e-4, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_templates("template", (self.template,))
        check_range("regions", self.regions, 2)
        check_range("emphasis", self.emphasis, 0)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1)

    def read_words(self, images: Images) -> Words:
        """The texts of these classes.

        Raises:
            BadInput: the texts cannot be read, or an emphasised class does not exist.
        """
        for name in self.emphasised:
            if name not in images.class_names:
                do = f"{suggestion(name, images.class_names)}Correct or remove it."
                raise BadInput("emphasised", name, f"classes of {images.title}", do)
        lists: Literal["clims", "clims_camera_ready"] = "clims" if self.variant == "improved" else "clims_camera_ready"
        return read_words(self.words, images.class_names, lists)

    def load_clip(self) -> ImageText | ResNetCLIP:
        """The frozen CLIP, on the CPU.

        Raises:
            BadInput: it cannot be loaded, or is a SigLIP that would get pictures of other colours.
        """
        clip = load_any_clip(self.clip, self.activation)
        to_clip(clip, self.colours, self.clip_colours)
        return clip

    def check(self, images: Images) -> Path | None:
        """Raise BadInput for words or a CLIP that cannot be used, before any stage runs.

        Returns:
            The weights that the training starts from; None if the run trains them first.
        """
        self.read_words(images)
        self.load_clip()
        return self.continued

    def trainable(self, images: Images) -> "CLIMSObjective":
        """The network with the weights of `init`, and its losses; CLIP is moved to the device.

        Raises:
            BadInput: weights, words or CLIP cannot be used, or the classes of the weights are not those of the pictures.
        """
        words = self.read_words(images)
        network: CAMNetwork | CameraReadyNetwork
        if self.variant == "improved":
            network, metadata = load_baseline(CAMNetwork, "clims", self, images)
        else:
            network, metadata = _camera_ready(self, images)
        return CLIMSObjective(self, network, metadata, self.load_clip(), words, images)


def _camera_ready(settings: CLIMSSettings, images: Images) -> tuple["CameraReadyNetwork", dict[str, object]]:
    check_baseline(settings.init, "clims")
    _, metadata, path = trained_weights(Path(settings.init), "cam")
    if metadata is not None:
        check_colours(settings.init, metadata["colours"], settings.colours)
    backbone = metadata["backbone"] if metadata is not None else "resnet50"
    network = CameraReadyNetwork(backbone, len(images.class_names))
    body = ResNet(_depth(backbone))
    load_backbone(body, backbone, str(path))
    network.load_state_dict(body.state_dict(), strict=False)
    for module in network.modules():
        # its parameter groups contain only weights of convolutions
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return network, {
        "kind": "cam",
        "head": "bottleneck",
        "backbone": backbone,
        "output_stride": 16,
        "classes": list(images.class_names),
        "colours": settings.colours,
    }


class CameraReadyNetwork(ResNet):
    """The network of the camera-ready version, with its parameter names: a bottleneck with leaky ReLUs before the 1x1 classifier.

    Args:
        backbone: `resnet18` .. `resnet152`; `resnet50` as published.
        n_classes: without the background, whose channel exists but is never used.
    """

    def __init__(self, backbone: str, n_classes: int) -> None:
        super().__init__(_depth(backbone))
        width = self.channels[-1]
        block = Bottleneck(width, width // Bottleneck.expansion)
        block.relu = nn.LeakyReLU(0.01, inplace=True)
        classifier = nn.Conv2d(width, 1 + n_classes, 1, bias=False)
        nn.init.normal_(classifier.weight, std=0.01)
        self.cam_head = nn.Sequential(block, classifier)

    def feature_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The feature maps of the ResNet's stages, the deepest last."""
        return self(image)

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, without the background's."""
        return self.cam_head(self(image)[-1])[:, 1:]


def _depth(backbone: str) -> int:
    match = re.fullmatch(r"resnet(\d+)", backbone)
    if not match or int(match[1]) not in DEPTHS:
        expected = f"resnet{{{','.join(map(str, DEPTHS))}}}"
        raise BadInput(f"backbone {backbone}", "not a ResNet of the camera-ready version", expected, "Choose one.")
    return int(match[1])


class CLIMSObjective(Objective):
    """The four losses, over the pairs of all processes.

    Args:
        settings: of the method.
        network: its frozen layers are already set.
        metadata: written with its weights.
        clip: frozen; it is moved to the device, and neither trained nor saved.
        words: of the classes; their features are computed here, once.
        images: the training pictures.
    """

    def __init__(
        self,
        settings: CLIMSSettings,
        network: CAMNetwork | CameraReadyNetwork,
        metadata: dict[str, Any],
        clip: ImageText | ResNetCLIP,
        words: Words,
        images: Images,
    ) -> None:
        examples = partial(example, images, settings.augment, settings.colours)
        if isinstance(network, CAMNetwork):
            groups: Groups = partial(body_and_head, network, settings.classifier_lr)
        else:
            # the code intends four groups with four learning rates, but every convolution falls into the first
            groups = partial(one_group, network)
        similarity = "sigmoid" if isinstance(clip, SigLIP) else "cosine"
        super().__init__(network, examples, metadata | described(clip, similarity), groups)
        self.network: CAMNetwork | CameraReadyNetwork = network
        self.settings = settings
        clip = clip.to(launch.device())
        # hidden in a partial: submodules would be saved, and synchronised between processes
        self.encode, self.size = partial(encode_regions, clip), input_size(clip)
        cooccurring = list(dict.fromkeys(word for of_class in words.cooccurring for word in of_class))
        prompts = [settings.template.replace("{}", text) for text in (*words.prompts, *cooccurring)]
        with torch.no_grad():
            texts = F.normalize(clip.encode_text(clip.vocabulary(prompts).to(launch.device())), dim=1)
        self.class_texts: Tensor
        self.word_texts: Tensor
        self.words_of: Tensor
        self.emphasis: Tensor
        self.scale: Tensor
        self.shift: Tensor
        n_classes = len(words.prompts)
        emphasis = [settings.emphasis if name in settings.emphasised else 1.0 for name in images.class_names]
        words_of = [[word in of_class for word in cooccurring] for of_class in words.cooccurring]
        scale, shift = to_clip(clip, settings.colours, settings.clip_colours)
        for name, value in (
            ("class_texts", texts[:n_classes]),
            ("word_texts", texts[n_classes:]),
            ("words_of", torch.tensor(words_of, dtype=torch.bool).reshape(n_classes, len(cooccurring))),
            ("emphasis", torch.tensor(emphasis)),
            ("scale", scale),
            ("shift", shift),
        ):
            self.register_buffer(name, value.clone(), persistent=False)
        # the camera-ready version clamps nothing; here cosines at or below 0 are, since their logarithm is not a number
        self.object_span = (LOWEST, HIGHEST) if settings.variant == "improved" else (LOWEST, torch.inf)
        self.background_span = (LOWEST, HIGHEST) if settings.variant == "improved" else (-torch.inf, torch.inf)
        self.sigmoid = (float(clip.temperature), float(clip.bias)) if isinstance(clip, SigLIP) else None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        raw = self.network.maps(batch["image"])
        scores = raw.to(torch.promote_types(raw.dtype, torch.float32)).sigmoid()
        return self.losses(scores, batch["image"], batch["label"])

    def _of_pairs(self) -> Cosines | Probabilities:
        """How similarities enter the losses."""
        if self.sigmoid is None:
            return Cosines(self.object_span, self.background_span, self.settings.threshold)
        return Probabilities(*self.sigmoid, self.settings.threshold)

    def losses(
        self, scores: Float[Tensor, "b c h w"], image: Float[Tensor, "b 3 hi wi"], label: Float[Tensor, "b c"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of maps X in [0, 1]; the first three are 0 if no picture has a tag."""
        weights, of_pairs, (rows, classes) = self.settings.weights, self._of_pairs(), pairs_of(label)
        features = self._features(scores[rows, classes][:, None], image, rows)
        with torch.autocast(scores.device.type, enabled=False):
            f_object, f_background = F.normalize(features.to(self.class_texts.dtype), dim=2).unbind(1)
            t = self.class_texts[classes]
            matching = [
                of_pairs.matching((f_object * t).sum(1)),
                of_pairs.differing((f_background * t).sum(1)),
            ]
            means = pair_mean(torch.stack(matching, 1) * self.emphasis[classes][:, None])
            suppressed = of_pairs.suppression(f_object @ self.word_texts.T, self.words_of[classes])
            return {
                "object_text": weights.object_text * means[0],
                "background_text": weights.background_text * means[1],
                # gradients are averaged over the processes, but this loss is a sum
                "suppression": weights.suppression * launch.processes() * suppressed.sum(),
                "area": weights.area * scores.mean(),
            }

    def _features(
        self, scores: Float[Tensor, "p 1 h w"], image: Float[Tensor, "b 3 hi wi"], rows: Int[Tensor, " p"]
    ) -> Float[Tensor, "p 2 d"]:
        if len(rows) == 0:
            return scores.new_zeros(0, 2, self.class_texts.shape[1])
        size = (self.size, self.size)
        pictures = F.interpolate(image, size, mode="bilinear", align_corners=True) * self.scale + self.shift
        return in_chunks(self.encode, self.settings.regions // 2, scores, pictures[rows])


@dataclasses.dataclass(frozen=True)
class CLIMSInference(MultiScale):
    """How the network's maps are computed: ReLU of the raw maps, not the sigmoid that was trained."""

    title: ClassVar[str] = "CLIMS"

    def localizer(self, images: Images, weights: Path) -> CAMLocalizer:
        """The localizer of a trained network, loaded from a stage folder or a published checkpoint (`res50_clims.pth`).

        Raises:
            BadInput: the weights belong to another network, or their classes are not those of the pictures.
        """
        network, colours = load(weights, images)
        return CAMLocalizer(network.to(launch.device()).eval(), self, colours)


def load(weights: Path, images: Images) -> tuple[CAMNetwork | CameraReadyNetwork, Literal["imagenet", "clip"]]:
    """A trained network of either variant on the CPU, and the colours that it was trained with; see `wsss.classifier.load`."""
    state, _, _ = trained_weights(weights, KIND)
    if "cam_head.1.weight" not in state:
        network, metadata = load_cam(weights, images)
        return network, metadata["colours"]
    loaded = trained_classifier(weights, images, KIND, _published)
    camera_ready = CameraReadyNetwork(loaded.metadata["backbone"], len(images.class_names))
    load_into(camera_ready, loaded.state, loaded.path)
    return camera_ready, loaded.metadata["colours"]


def _published(state: State, images: Images, path: Path) -> dict[str, object]:
    """Metadata of a checkpoint of the camera-ready version; its classes are taken to be those of the dataset, in order."""
    channels = len(state["cam_head.1.weight"])
    if channels != 1 + len(images.class_names):
        expected = f"{len(images.class_names)} classes and the background, for {images.title}"
        raise BadInput(
            path, f"a classifier of {channels} channels", expected, "Use the dataset that it was trained on."
        )
    return {"backbone": "resnet50", "classes": images.class_names, "colours": "clip"}


METHOD = Method(
    name="clims",
    paper="CLIMS (Xie et al., CVPR 2022), a classifier trained with a frozen CLIP",
    # the published baseline trains the first two stages, which IRNet freezes
    needs={BASELINE: baseline(CAMSettings(frozen="stem"))},
    classifier=CLIMSSettings(),
    inference=CLIMSInference(),
    # no padding, since it is commented out in make_sem_seg_labels.py
    refiner=IRNetSettings(
        walk=IRNetWalk(pad_to=0),
    ),
)
