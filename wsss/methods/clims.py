"""CLIMS: cross language image matching for weakly supervised semantic segmentation (Xie et al., CVPR 2022).

A CAM network learns on from what a frozen CLIP makes of the regions that its maps cut out. With X = sigmoid(M) the maps of a
picture I, and for each pair p of a picture and a class that it has, O_p = X_c I and G_p = (1 - X_c) I the object's region and the
background's, f their unit image features and t unit text features:

    a_p = <f(O_p), t_c>,  b_p = <f(G_p), t_c>,  r_pm = <f(O_p), t_m> for the words m that go with the class
    L = alpha mean(-ln a_p) + beta mean(-ln(1 - b_p)) + gamma sum([r_pm > tau] -ln(1 - r_pm)) + delta mean(X)

The paper sums the first two over a picture's classes; the published code, which made the better numbers, takes means over
the pairs, one list of words for all classes, and the threshold tau. The camera-ready version is the code of the paper's own numbers.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck

from wsss import launch
from wsss.data.augment import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, ClassifierAugment
from wsss.data.images import Dataset, Images
from wsss.data.lists import suggestion
from wsss.data.words import Words, check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.methods import cam
from wsss.networks.clip import CLIP
from wsss.networks.clip_resnet import ResNetCLIP
from wsss.networks.resnet import DEPTHS, ResNet
from wsss.pretrained import Activation, load_any_clip
from wsss.recipe import Tail, finish
from wsss.refiners.irnet import Refinement as IRNetSettings
from wsss.refiners.irnet import Walk
from wsss.run import maybe_file, unrecorded
from wsss.stages.localize import localize
from wsss.stages.refine import Settings as LabelSettings
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, load_backbone, load_into, trained_weights, write_weights

BASELINE, NONE = "baseline", "none"
# clip_loss.py; beyond them there is no gradient
LOWEST, HIGHEST = 1e-4, 0.9999

Variant = Literal["improved", "camera-ready"]
Span = tuple[float, float]
# patches (n, N, width) after block number d, 0 before the first, to what goes on in their place
Replace = Callable[[int, Tensor], Tensor]


class Pairs(NamedTuple):
    """Pairs of a picture and a class that it has, picture by picture.

    Attributes:
        rows: of the pictures in the batch.
        classes: 0-based.
    """

    rows: Int[Tensor, " p"]
    classes: Int[Tensor, " p"]


def pairs_of(label: Float[Tensor, "b c"]) -> Pairs:
    """The pairs of a batch with the tags `label`."""
    return Pairs(*label.nonzero(as_tuple=True))


def regions(
    scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> tuple[Float[Tensor, "p 3 s s"], Float[Tensor, "p 3 s s"]]:
    """What maps X in [0, 1] leave of pictures I, and what they take away: X I and (1 - X) I, with X at the pictures' size."""
    x = F.interpolate(scores, pictures.shape[2:], mode="bilinear", align_corners=True)
    return x * pictures, (1 - x) * pictures


def in_parts(encode: Callable[..., Tensor], most: int, *inputs: Tensor) -> Tensor:
    """`encode` of all rows of the inputs, at most so many at a time.

    Where that takes several parts, each runs once more in the backward pass, so that no more than one of them takes
    memory at a time. The result is the same.

    Args:
        encode: of some rows of each input, row by row.
        most: rows at a time.
        inputs: with equal numbers of rows.
    """
    if len(inputs[0]) <= most:
        return encode(*inputs)
    parts = zip(*(value.split(most) for value in inputs), strict=True)
    return torch.cat([checkpoint(encode, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def pair_mean(values: Float[Tensor, "p *k"]) -> Float[Tensor, "*k"]:
    """The part of this process in a mean over the pairs of all processes; 0 where none has any.

    The number of pairs differs between processes. The mean of these parts over the processes, which gradients are
    averaged over, is the mean over all pairs.
    """
    pairs = launch.mean_over_processes(values.new_tensor(len(values)))
    return values.sum(0) / pairs.clamp_min(1 / launch.processes())


def object_text_loss(similarity: Float[Tensor, " p"], span: Span = (LOWEST, HIGHEST)) -> Float[Tensor, " p"]:
    """-ln a_p, a_p kept in the span."""
    return -similarity.clamp(*span).log()


def background_text_loss(similarity: Float[Tensor, " p"], span: Span = (LOWEST, HIGHEST)) -> Float[Tensor, " p"]:
    """-ln(1 - b_p), b_p kept in the span."""
    return -torch.log1p(-similarity.clamp(*span))


def suppression_loss(
    similarity: Float[Tensor, "p m"], words: Bool[Tensor, "p m"], threshold: float | None
) -> Float[Tensor, " p"]:
    """Sum over the words m of a pair of [r_pm > tau] -ln(1 - r_pm).

    Args:
        similarity: r.
        words: those that go with the pair's class.
        threshold: tau; with None, the mean over all words of the pair as in the camera-ready version, 0 without any.
    """
    counted = words if threshold is None else words & (similarity > threshold)
    total = -torch.log1p(-similarity.where(counted, 0)).sum(1)
    return total if threshold is not None else total / words.sum(1).clamp_min(1)


def input_size(clip: CLIP | ResNetCLIP) -> int:
    """Side of the pictures that a CLIP was trained on, in pixels."""
    return clip.input_size if isinstance(clip, ResNetCLIP) else clip.patch * clip.native_grid


def encode_image(
    clip: CLIP | ResNetCLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None = None
) -> Float[Tensor, "n d"]:
    """Pictures of `input_size` to the joint space, not normalised.

    Args:
        clip: the network.
        image: the pictures.
        replace: puts others in the place of some patches, as mask prompts do; of a vision transformer alone.
    """
    if isinstance(clip, ResNetCLIP):
        return clip.encode_image(image)
    x = _tokens(clip, image, replace)
    for index in range(clip.n_blocks - 1):
        x, _ = clip.block(index, x)
        if replace is not None:
            x = torch.cat([x[:, :1], replace(index + 1, x[:, 1:])], 1)
    return clip.project(_last_class_token(clip.last_block(), x))


def _tokens(clip: CLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None) -> Float[Tensor, "n l width"]:
    """As `CLIP.embed`, by a matrix product: a CPU takes much longer for the gradient of its convolution with respect to pictures."""
    vision: Any = clip.model.vision_model
    side, patch = clip.native_grid, clip.patch
    patches = image.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
    embedded = F.linear(patches.flatten(3).flatten(1, 2), vision.embeddings.patch_embedding.weight.flatten(1))
    embedded = embedded if replace is None else replace(0, embedded)
    first = vision.embeddings.class_embedding.expand(len(image), 1, -1)
    return vision.pre_layrnorm(torch.cat([first, embedded], 1) + clip.positions((side, side), rounded=False))


def _last_class_token(layer: Any, x: Float[Tensor, "n l width"]) -> Float[Tensor, "n width"]:
    """The class token after the last block, of whose other tokens nothing but keys and values is needed."""
    own, y = layer.self_attn, layer.layer_norm1(x)
    q, k, v = (
        projection(rows).unflatten(2, (own.num_heads, -1)).transpose(1, 2)
        for projection, rows in ((own.q_proj, y[:, :1]), (own.k_proj, y), (own.v_proj, y))
    )
    first = x[:, 0] + own.out_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))
    return first + layer.mlp(layer.layer_norm2(first))


def encode_regions(
    clip: CLIP | ResNetCLIP, scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> Float[Tensor, "p 2 d"]:
    """Features of the object's region and of the background's, not normalised."""
    both = torch.cat(regions(scores, pictures))
    return encode_image(clip, both).unflatten(0, (2, -1)).transpose(0, 1)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, as the published code has them for VOC."""

    object_text: float = 10.0
    """alpha, of the match of objects and their names"""
    background_text: float = 24.0
    """beta, of the match of backgrounds and the names of objects"""
    suppression: float = 1.0
    """gamma, of backgrounds that objects bring along: a sum over all pairs, so it grows with the batch"""
    area: float = 0.2
    """delta, of the mean of all maps, those of absent classes included"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f"weights.{field.name}", getattr(self, field.name), 0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A CAM network that learns from a frozen CLIP."""

    variant: Variant = "improved"
    """the published code's later version, or the camera-ready one: layers, what of them learns, and whether cosines are clamped"""
    init: str = maybe_file(BASELINE)
    """classifier to start from: `baseline`, which a run trains first, or a folder or file such as res50_cam.pth"""
    frozen: Literal["stem", "nothing"] = "stem"
    """what keeps its weights in the improved version; batch-norm statistics move everywhere"""
    clip: str = maybe_file("openai/clip-vit-base-patch32")
    """a hub id, a folder of Hugging Face transformers, or a file of OpenAI (ViT-B-32.pt, RN50x4.pt) or open_clip"""
    activation: Activation = "quick_gelu"
    """of a state dict of open_clip, which does not say it: gelu for most of them"""
    words: str = maybe_file("auto")
    """texts of the classes and of what objects bring along: a YAML file, or auto for CLIMS' lists"""
    # with a full stop and without an article, as in clip_utils.py
    template: str = "a photo of {}."
    """sentence around them"""
    colours: Literal["imagenet", "clip"] = "imagenet"
    """mean and deviation that pictures are normalised by, as in the training of `init`"""
    # the published code gives CLIP pictures with ImageNet's mean and deviation
    clip_colours: Literal["same", "clip"] = "same"
    """those of the regions that CLIP sees: the same, or its own"""
    weights: LossWeights = LossWeights()
    """weights of the losses"""
    # 0.26 is the default of clip_loss.py, which nothing sets on VOC
    threshold: float | None = 0.26
    """tau, above which a word is suppressed; null: a mean over the words of a class without threshold, as in the camera-ready version"""
    emphasised: tuple[str, ...] = ()
    """classes that count more in the two matching losses"""
    emphasis: float = 3.0
    """how many times more they count"""
    classifier_lr: float = 10.0
    """learning rate of the classifier, times that of the body"""
    regions: int = unrecorded(128)
    """most regions that CLIP sees at a time, two a pair; fewer take less memory and more time, and change rounding alone"""
    augment: ClassifierAugment = ClassifierAugment()
    """what training pictures go through"""
    # PolyOptimizer hands its weight decay to SGD's momentum: 1e-4 is what the published numbers were made with
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
            BadInput: they cannot be read, or an emphasised class is not there.
        """
        for name in self.emphasised:
            if name not in images.class_names:
                do = f"{suggestion(name, images.class_names)}Correct or remove it."
                raise BadInput("emphasised", name, f"classes of {images.title}", do)
        lists: Literal["clims", "clims_camera_ready"] = "clims" if self.variant == "improved" else "clims_camera_ready"
        return read_words(self.words, images.class_names, lists)

    def load_clip(self) -> CLIP | ResNetCLIP:
        """The frozen CLIP, on the CPU."""
        return load_any_clip(self.clip, self.activation)

    def trainable(self, images: Images) -> "Learning":
        """The network with the weights of `init`, and its losses by CLIP, which is on the device already.

        Raises:
            BadInput: weights, words or CLIP cannot be used, or the weights are of other classes than the pictures have.
        """
        words = self.read_words(images)
        check_baseline(self.init, "clims")
        network: cam.Network | CameraReadyNetwork
        if self.variant == "improved":
            network, metadata = baseline(self.init, images, self.frozen, self.colours)
        else:
            network, metadata = _camera_ready(self, images)
        return Learning(self, network, metadata, self.load_clip(), words, images)


def check_baseline(init: str, method: str) -> None:
    """Raise BadInput where a training alone is to start from what a run trains first."""
    if init == BASELINE:
        do = f"Train one with `wsss train cam` and give its folder, or take `wsss run {method}`, which does both."
        raise BadInput("init", f"`{BASELINE}`, which a run trains", "a trained classifier", do)


def baseline(
    init: str, images: Images, frozen: Literal["stem", "nothing"], colours: str
) -> tuple[cam.Network, dict[str, Any]]:
    """The trained classifier that CLIMS and QA-CLIMS start from, and what is written beside its weights.

    Raises:
        BadInput: the weights are of another network, of other classes than the pictures have, or for other colours.
    """
    network, metadata = cam.load(Path(init), images)
    _check_colours(init, metadata["colours"], colours)
    cam.freeze(network.body, frozen)
    described = {key: metadata[key] for key in ("backbone", "output_stride", "classes", "colours")}
    return network, {"kind": "cam", **described}


def _camera_ready(settings: Settings, images: Images) -> tuple["CameraReadyNetwork", dict[str, Any]]:
    _, metadata, path = trained_weights(Path(settings.init), "cam")
    if metadata is not None:
        _check_colours(settings.init, metadata["colours"], settings.colours)
    backbone = metadata["backbone"] if metadata is not None else "resnet50"
    network = CameraReadyNetwork(backbone, len(images.class_names))
    body = ResNet(_depth(backbone))
    load_backbone(body, backbone, str(path))
    network.load_state_dict(body.state_dict(), strict=False)
    for module in network.modules():
        # its parameter groups hold weights of convolutions alone
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


def _check_colours(init: str, found: str, expected: str) -> None:
    if found != expected:
        do = "Set `colours` (of both, the method and `classifier`, in a run) alike."
        raise BadInput(init, f"weights for colours of {found}", expected, do)


class CameraReadyNetwork(ResNet):
    """The network of the camera-ready version, under its names: a bottleneck with leaky ReLUs before the 1x1 classifier.

    Args:
        backbone: `resnet18` .. `resnet152`; `resnet50` as published.
        n_classes: without the background, whose channel is there and never used.
    """

    def __init__(self, backbone: str, n_classes: int) -> None:
        super().__init__(_depth(backbone))
        width = self.channels[-1]
        block = Bottleneck(width, width // Bottleneck.expansion)
        block.relu = nn.LeakyReLU(0.01, inplace=True)
        classifier = nn.Conv2d(width, 1 + n_classes, 1, bias=False)
        nn.init.normal_(classifier.weight, std=0.01)
        self.cam_head = nn.Sequential(block, classifier)

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, without the background's."""
        return self.cam_head(self(image)[-1])[:, 1:]


def _depth(backbone: str) -> int:
    match = re.fullmatch(r"resnet(\d+)", backbone)
    if not match or int(match[1]) not in DEPTHS:
        expected = f"resnet{{{','.join(map(str, DEPTHS))}}}"
        raise BadInput(f"backbone {backbone}", "another than the camera-ready version has", expected, "Choose one.")
    return int(match[1])


class Learning(nn.Module):
    """The four losses, over the pairs of all processes.

    Args:
        settings: of the method.
        network: with the layers that stay as they are frozen.
        metadata: what is written beside its weights.
        clip: frozen; it goes to the device, and is neither trained nor saved.
        words: of the classes; their features are computed here, once.
        images: to learn from.
    """

    def __init__(
        self,
        settings: Settings,
        network: cam.Network | CameraReadyNetwork,
        metadata: dict[str, Any],
        clip: CLIP | ResNetCLIP,
        words: Words,
        images: Images,
    ) -> None:
        super().__init__()
        self.network, self.settings, self.metadata = network, settings, metadata
        self.examples = partial(cam.example, images, settings.augment, settings.colours)
        clip = clip.to(launch.device())
        # no module of this one, whose modules are saved and shared between processes
        self.encode, self.size = partial(encode_regions, clip), input_size(clip)
        behind = list(dict.fromkeys(word for own in words.cooccurring for word in own))
        prompts = [settings.template.replace("{}", text) for text in (*words.prompts, *behind)]
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
        words_of = [[word in own for word in behind] for own in words.cooccurring]
        scale, shift = to_clip(settings.colours, settings.clip_colours)
        for name, value in (
            ("class_texts", texts[:n_classes]),
            ("word_texts", texts[n_classes:]),
            ("words_of", torch.tensor(words_of, dtype=torch.bool).reshape(n_classes, len(behind))),
            ("emphasis", torch.tensor(emphasis)),
            ("scale", scale),
            ("shift", shift),
        ):
            self.register_buffer(name, value.clone(), persistent=False)
        # log of the camera-ready version's cosines is no number at 0 and below; it clamps nothing else
        self.object_span = (LOWEST, HIGHEST) if settings.variant == "improved" else (LOWEST, torch.inf)
        self.background_span = (LOWEST, HIGHEST) if settings.variant == "improved" else (-torch.inf, torch.inf)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        raw = self.network.maps(batch["image"])
        scores = raw.to(torch.promote_types(raw.dtype, torch.float32)).sigmoid()
        return self.losses(scores, batch["image"], batch["label"])

    def losses(
        self, scores: Float[Tensor, "b c h w"], image: Float[Tensor, "b 3 hi wi"], label: Float[Tensor, "b c"]
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of maps X in [0, 1]; the first three are 0 where no picture has a tag."""
        weights, (rows, classes) = self.settings.weights, pairs_of(label)
        features = self._features(scores[rows, classes][:, None], image, rows)
        with torch.autocast(scores.device.type, enabled=False):
            f_object, f_background = F.normalize(features.to(self.class_texts.dtype), dim=2).unbind(1)
            t = self.class_texts[classes]
            matching = [
                object_text_loss((f_object * t).sum(1), self.object_span),
                background_text_loss((f_background * t).sum(1), self.background_span),
            ]
            means = pair_mean(torch.stack(matching, 1) * self.emphasis[classes][:, None])
            suppressed = suppression_loss(f_object @ self.word_texts.T, self.words_of[classes], self.settings.threshold)
            return {
                "object_text": weights.object_text * means[0],
                "background_text": weights.background_text * means[1],
                # gradients are averaged over the processes, and this is a sum
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
        return in_parts(self.encode, self.settings.regions // 2, scores, pictures[rows])

    def write(self, out: Path) -> None:
        write_weights(out / WEIGHTS, self.network.state_dict(), self.metadata)

    def param_groups(self, training: Training) -> list[dict[str, Any]]:
        if isinstance(self.network, cam.Network):
            return cam.param_groups(self.network, training, self.settings.classifier_lr)
        # meant to be four groups with four learning rates; every convolution of the camera-ready version falls into the first
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return [{"params": learned, "lr": training.lr, "weight_decay": training.weight_decay}]


def to_clip(
    colours: Literal["imagenet", "clip"], clip_colours: Literal["same", "clip"]
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What pictures are multiplied by, and what is added then, to get the colours of the regions."""
    if clip_colours == "same" or colours == "clip":
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    mean, std, own_mean, own_std = (
        torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD)
    )
    return std / own_std, (mean - own_mean) / own_std


@dataclasses.dataclass(frozen=True)
class Inference(cam.Views):
    """How maps are taken from the network: ReLU of the raw maps, not the sigmoid that was trained."""

    def localizer(self, images: Images, weights: Path) -> cam.Localizer:
        """A trained network, ready to give maps: of a stage folder, or a published checkpoint (`res50_clims.pth`).

        Raises:
            BadInput: the weights are of another network, or of other classes than the pictures have.
        """
        network, colours = load(weights, images)
        return cam.Localizer(network.to(launch.device()).eval(), self, colours)


def load(weights: Path, images: Images) -> tuple[cam.Network | CameraReadyNetwork, Literal["imagenet", "clip"]]:
    """A trained network of either variant on the CPU, and the colours that it was trained on; see `cam.load`."""
    state, metadata, path = trained_weights(weights, "cam")
    head = state.get("cam_head.1.weight")
    if head is None:
        network, known = cam.load(weights, images)
        return network, known["colours"]
    if metadata is None and len(head) != 1 + len(images.class_names):
        expected = f"{len(images.class_names)} classes and the background, for {images.title}"
        raise BadInput(path, f"a classifier of {len(head)} channels", expected, "Use the data set that it is for.")
    metadata = metadata or {"backbone": "resnet50", "classes": images.class_names, "colours": "clip"}
    cam.check_classes(path, metadata["classes"], images)
    camera_ready = CameraReadyNetwork(metadata["backbone"], len(images.class_names))
    load_into(camera_ready, state, path)
    return camera_ready, metadata["colours"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A classifier, taught by CLIP, gives maps; refined by IRNet, they teach a segmenter."""

    # the published baseline lets the second and third stage learn, which IRNet freezes
    classifier: cam.Settings = cam.Settings(frozen="stem")
    """the baseline"""
    clims: Settings = Settings()
    """the network that learns from CLIP"""
    weights: str = maybe_file(NONE)
    """a trained one, such as res50_clims.pth, in the place of both; `none` trains them"""
    inference: Inference = Inference()
    """the maps"""
    # thresholds of the scripts for VOC; no padding, since make_sem_seg_labels.py has it commented out
    tail: Tail = Tail(
        refiner="irnet",
        irnet=IRNetSettings(
            labels=LabelSettings(by="crf", threshold=0.30, lower=0.10),
            walk=Walk(pad_to=0),
            masks=LabelSettings(by="threshold", threshold=0.20),
        ),
    )
    """pseudo masks, segmenter and scores"""


def recipe(run: Path, data: Dataset, settings: Recipe) -> None:
    """Tags -> baseline -> CLIMS -> maps -> pseudo masks -> segmenter -> scores, each in a folder of `run`."""
    given = None if settings.weights == NONE else Path(settings.weights)
    settings.tail.check(classifier=given is None or given.is_dir())
    images = data.split(data.train)
    trained = given or _trained(run, images, settings)
    cams = localize(settings.inference, images, weights=trained, out=run / "cams")
    finish(run, data, cams, settings.tail, trained if trained.is_dir() else None)


def _trained(run: Path, images: Images, settings: Recipe) -> Path:
    clims = settings.clims
    if clims.init == BASELINE:
        clims.read_words(images)
        clims.load_clip()  # what cannot be used is refused before hours are spent on the baseline
        classifier = train(settings.classifier, images, out=run / "classifier")
        clims = dataclasses.replace(clims, init=str(classifier / WEIGHTS))
    return train(clims, images, out=run / "clims")
