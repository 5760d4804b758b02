"""VWE: learning visual words for weakly-supervised semantic segmentation (Ru et al., IJCAI 2021), and VWL (Ru et al., IJCV 2022).

A CAM network is also trained with a target that it generates itself: which of K visual words b_k a picture contains. X >= 0 are the
deepest features of a picture, y its tags, and l the multi-label soft margin loss:

    s_k = <X / |X|, b_k / |b_k|>,  a = argmax_k s_k,  p = softmax_k(tau s_k)        for each cell
    y_word,k = [some cell has a = k],  H_k = sum of p_k over the cells
    P(X) = (gamma avg X + sum over levels l of M_l(X)) / (gamma + number of levels)
    L = l(W_c P(X), y) + l(W_b avg X, y_word) + l(W_a H, y) + (|G|_F - |diag G|_2) / 2

M_l is the mean of the maxima over an l x l grid of squares (hybrid pooling), G the Gram matrix of the words after subtracting each word's
mean. VWE learns the words with the third term, VWL-L also with the last. VWL-M has neither: it moves each word towards the features
assigned to it.
"""

import dataclasses
import math
import re
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss import launch
from wsss.arrays import Float, Int, UInt8
from wsss.classifier import CAMLocalizer, MultiScale, example, freeze, trained_classifier
from wsss.data.augment import ClassifierAugment, normalise
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into, to_be_trained
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone
from wsss.networks.irnet import IRNET_ALIASES
from wsss.networks.resnet import ResNet
from wsss.objective import Objective, body_and_head
from wsss.ops.visual_words import WordAssignment, characteristic_words, draw_words
from wsss.progress import Progress
from wsss.recipe import Extra, Method
from wsss.refiners.irnet import IRNetSettings
from wsss.run import pretrained, stage
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.report import FIGURE
from wsss.stages.train import Training
from wsss.storage import whole_file
from wsss.weights import State

KIND = "vwl"

Variant = Literal["vwl-l", "vwl-m", "vwe"]


def hybrid_pooling(
    x: Float[Tensor, "n c h w"], levels: tuple[int, ...] = (1, 2, 4), gamma: float = 2.0
) -> Float[Tensor, "n c"]:
    """P(X): the weighted mean of a map's average and, for each level, the average of its maxima over squares.

    At level l a square has (h // l) x (w // l) cells, but at least one (the published code lacks this minimum). Remaining cells at
    the bottom and on the right are dropped.

    Args:
        x: features.
        levels: squares along each axis, for each level.
        gamma: weight of the average; each level has weight 1.
    """
    height, width = x.shape[2:]
    total = gamma * x.mean((2, 3))
    for level in levels:
        total = total + F.max_pool2d(x, (max(height // level, 1), max(width // level, 1))).mean((2, 3))
    return total / (gamma + len(levels))


def similarities(x: Float[Tensor, "n d h w"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "n k h w"]:
    """s: cosine similarities of features and words."""
    return F.conv2d(F.normalize(x, dim=1), F.normalize(codebook, dim=1)[:, :, None, None])


def word_labels(assigned: Int[Tensor, "n h w"], n_words: int) -> Float[Tensor, "n k"]:
    """y_word: 1 for the words that occur in a picture, 0 for the others."""
    present = torch.zeros(len(assigned), n_words, device=assigned.device)
    return present.scatter_(1, assigned.flatten(1), 1.0)


def histogram(similarity: Float[Tensor, "n k h w"], temperature: float = 1.0) -> Float[Tensor, "n k"]:
    """H: the sum (not the mean) of softmax(tau s) over the cells; `temperature` is the factor tau."""
    return (temperature * similarity).softmax(1).sum((2, 3))


def decorrelation_loss(codebook: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """(|G|_F - |diag G|_2) / 2; unlike DeCov, not the difference of the squares.

    The norms are nearly equal, so their difference is computed as |G - diag G|_F^2 / (|G|_F + |diag G|_2).
    """
    centred = codebook - codebook.mean(1, keepdim=True)
    gram = centred @ centred.T
    diagonal = gram.diagonal()
    off_diagonal = (gram - diagonal.diag()).square().sum()
    on_diagonal = diagonal.square().sum()
    return 0.5 * off_diagonal / ((off_diagonal + on_diagonal).sqrt() + on_diagonal.sqrt())


def entropy_loss(word_logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Entropy of softmax(word logits) + 1e-8, mean over the pictures."""
    p = word_logits.softmax(1) + 1e-8
    return -(p * p.log()).sum(1).mean()


def word_sums(
    x: Float[Tensor, "n d h w"], assigned: Int[Tensor, "n h w"], n_words: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """For each word, the sum of the features assigned to it, and their number."""
    sums = x.new_zeros(x.shape[1], n_words)
    # picture by picture: rearranging all features as rows would take ten times as long
    for features, words in zip(x.flatten(2), assigned.flatten(1), strict=True):
        sums.index_add_(1, words, features)
    return sums.T, assigned.flatten().bincount(minlength=n_words).to(x.dtype)


class LearnedWords(nn.Module):
    """The codebook of VWE and VWL-L: a parameter with its published name."""

    def __init__(self, codebook: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.centroid = nn.Parameter(codebook[:, :, None, None])


class MemoryBank(nn.Module):
    """The codebook B of VWL-M, which is not trained by gradients; it is saved with the weights, as is the number of its updates."""

    def __init__(self, codebook: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.codebook: Tensor
        self.updates: Tensor
        self.register_buffer("codebook", codebook)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "n d h w"], assigned: Int[Tensor, "n h w"], rate: float, seed: int) -> None:
        """B_k <- (1 - rho) B_k + rho (sum of the features of word k) / (their number + 1e-4), over all processes.

        As published, the first update is different: it copies features drawn at random from the batch, with replacement.

        Args:
            x: features, not normalised.
            assigned: the word of each cell.
            rate: rho.
            seed: random seed of the first update.
        """
        n_words = len(self.codebook)
        if self.updates == 0:
            rows = launch.joined(x).permute(0, 2, 3, 1).flatten(0, 2)
            drawn = torch.randint(len(rows), (n_words,), generator=torch.Generator().manual_seed(seed))
            self.codebook.copy_(rows[drawn.to(rows.device)])
        else:
            sums, counts = (launch.processes() * launch.mean_over_processes(v) for v in word_sums(x, assigned, n_words))
            self.codebook.mul_(1 - rate).add_(rate * sums / (counts + 1e-4)[:, None])
        self.updates += 1


class VWLNetwork(nn.Module):
    """A backbone, a classifier, and the two layers between pictures, words and classes, with the published names.

    Args:
        backbone: its parameters are `resnet.*` for our ResNets, `backbone.*` for timm models.
        n_classes: without the background.
        n_words: K.
        learned: whether the codebook is a parameter (VWE, VWL-L) or a memory bank (VWL-M).
        output_stride: pixels per cell of the deepest features.
    """

    def __init__(self, backbone: str, n_classes: int, n_words: int, learned: bool, output_stride: int = 16) -> None:
        super().__init__()
        body = create_backbone(backbone, output_stride)
        width = body.channels[-1]
        self.body_name = "resnet" if isinstance(body, ResNet) else "backbone"
        self.add_module(self.body_name, body)
        self.classifier = nn.Conv2d(width, n_classes, 1, bias=False)
        self.fc_a = nn.Conv2d(n_words, n_classes, 1, bias=False)
        self.fc_b = nn.Conv2d(width, n_words, 1, bias=False)
        self.learned = learned
        codebook = nn.init.kaiming_normal_(torch.empty(n_words, width), a=math.sqrt(5))
        if learned:
            self.VWE = LearnedWords(codebook)
        else:
            self.bank = MemoryBank(codebook)

    @property
    def body(self) -> Backbone:
        """The backbone."""
        return cast(Backbone, self.get_submodule(self.body_name))

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The words, as rows."""
        return self.VWE.centroid[:, :, 0, 0] if self.learned else self.bank.codebook

    def feature_maps(self, image: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The feature maps of the backbone's stages, the deepest last."""
        return self.body(image)

    def features(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d hs ws"]:
        """X."""
        return self.body(image)[-1]

    def maps(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c hs ws"]:
        """Raw class activation maps, before ReLU; without pooling, so pictures may have any size."""
        return self.classifier(self.features(image))


@dataclasses.dataclass(frozen=True)
class VWLSettings:
    """The network that produces the maps, and its visual words."""

    title: ClassVar[str] = "VWL"

    variant: Variant = "vwl-l"
    """the conference version (vwe), or the journal versions with learned words (vwl-l) or a memory bank (vwl-m)"""
    backbone: str = "auto"
    """resnet18 .. resnet152, or any timm model that returns feature maps; auto: resnet50 for vwe, resnet101 for the others"""
    output_stride: int = 16
    """pixels per cell of the maps"""
    init: str = pretrained("imagenet")
    """initial weights of the backbone: `imagenet`, `none`, or a file"""
    frozen: Literal["auto", "nothing", "stem", "stages"] = "auto"
    """layers whose weights are frozen, with all batch-norm statistics; auto: nothing if `init` is `none`, stem for vwl-m, otherwise stages
    (the stem and two stages)"""
    heads_lr: float = 10.0
    """learning rate of the classifier, the words and the layers between them, as a multiple of the backbone's"""
    words: int = 256
    """K, the number of visual words"""
    # an argument of VWL-L's network that no script sets: H is nearly flat at 1
    temperature: float = 1.0
    """tau, factor of the similarities in the softmax of the histogram"""
    # VWL-L's file had 0 from July to September 2021, when its results were published; the value behind them is unknown
    gamma: float = 2.0
    """weight of the average in the hybrid pooling"""
    levels: tuple[int, ...] = (1, 2, 4)
    """levels of the hybrid pooling: the number of squares along each axis over which maxima are taken"""
    bank_rate: float = 1e-3
    """rho, update rate of the memory bank of vwl-m"""
    decorrelation: float = 1.0
    """weight of the decorrelation of the words of vwl-l"""
    # VWL-L computes this loss but does not add it; a comment there has 0.1
    entropy: float = 0.0
    """weight of the entropy of the predicted words of a picture"""
    augment: ClassifierAugment = ClassifierAugment()
    """augmentation of training pictures"""
    # PolyOptimizer passes its weight decay to SGD as momentum, and uses its own momentum of 0.9 as the exponent of the schedule
    training: Training = Training(batch=16, epochs=6, lr=0.01, weight_decay=1e-4, momentum=1e-4, seed=1)
    """how the network is trained"""

    def __post_init__(self) -> None:
        for name in ("heads_lr", "gamma", "decorrelation", "entropy"):
            check_range(name, getattr(self, name), 0)
        check_range("words", self.words, 1)
        check_range("bank_rate", self.bank_rate, 0, 1)
        check_range("levels", self.levels, 1)
        if self.temperature <= 0:
            raise BadInput("temperature", str(self.temperature), "a number above 0", "Change it.")

    @property
    def stop_epochs(self) -> int | None:
        """Default of `training.stop_epochs`: the inference of VWL-L reads the file of the fifth of six epochs."""
        published = self.variant == "vwl-l" and self.training.steps is None and self.training.epochs == 6
        return 5 if published else None

    @property
    def body(self) -> str:
        """The name of the backbone, with `auto` resolved."""
        return self.backbone if self.backbone != "auto" else "resnet50" if self.variant == "vwe" else "resnet101"

    @property
    def frozen_layers(self) -> str:
        """`frozen`, with `auto` resolved."""
        if self.frozen != "auto":
            return self.frozen
        # VWE and VWL-L detach the output of layer2; VWL-M dropped that
        return "nothing" if self.init == "none" else "stem" if self.variant == "vwl-m" else "stages"

    def check(self, images: Images) -> Backbone:
        """The backbone that will be trained; see `wsss.recipe.ClassifierSettings`."""
        body = to_be_trained(self.body, self.output_stride)
        check_initial("classifier.init", body, self.body, self.init)
        return body

    def trainable(self, images: Images) -> "VWLObjective":
        """The network with new or given weights, and its losses."""
        learned = self.variant != "vwl-m"
        network = VWLNetwork(self.body, len(images.class_names), self.words, learned, self.output_stride)
        if self.init != "none":
            load_backbone(network.body, self.body, self.init)
        return VWLObjective(self, network, images)


class VWLObjective(Objective):
    """The losses; in training, the forward pass of VWL-M also updates its memory bank."""

    def __init__(self, settings: VWLSettings, network: VWLNetwork, images: Images) -> None:
        examples = partial(example, images, settings.augment, "imagenet")
        metadata = {
            "kind": KIND,
            "variant": settings.variant,
            "backbone": settings.body,
            "output_stride": settings.output_stride,
            "classes": list(images.class_names),
        }
        groups = partial(body_and_head, network, settings.heads_lr)
        super().__init__(
            network,
            examples,
            metadata,
            groups,
            keep_statistics=settings.frozen_layers != "nothing",
            stop_epochs=settings.stop_epochs,
        )
        self.network: VWLNetwork = network
        self.settings = settings
        freeze(network.body, settings.frozen_layers)
        # the loss of VWL-M does not include the classes of words, so fc_a is never trained
        network.fc_a.requires_grad_(network.learned)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        x = self.network.features(batch["image"])
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(x.to(torch.promote_types(x.dtype, torch.float32)), batch["label"])

    def losses(self, x: Float[Tensor, "n d h w"], label: Float[Tensor, "n c"]) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of features X; no gradient flows through the assignment of words."""
        network, settings, codebook = self.network, self.settings, self.network.codebook
        similarity = similarities(x.detach(), codebook)
        assigned = similarity.argmax(1)
        pooled = hybrid_pooling(x, settings.levels, settings.gamma)
        word_logits = _scores(network.fc_b, x.mean((2, 3)))
        margin = F.multilabel_soft_margin_loss
        losses = {
            "classification": margin(_scores(network.classifier, pooled), label),
            "words": margin(word_logits, word_labels(assigned, len(codebook)).to(x)),
        }
        if network.learned:
            counts = histogram(similarity, settings.temperature)
            losses["classes_of_words"] = margin(_scores(network.fc_a, counts), label)
        elif self.training:
            network.bank.update(x.detach(), assigned, settings.bank_rate, settings.training.seed)
        if settings.variant == "vwl-l":
            losses["decorrelation"] = settings.decorrelation * decorrelation_loss(codebook)
        if settings.entropy > 0:
            losses["entropy"] = settings.entropy * entropy_loss(word_logits)
        return losses


def _scores(layer: nn.Conv2d, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """A 1x1 convolution applied to vectors."""
    return F.linear(vectors, layer.weight[:, :, 0, 0])


@dataclasses.dataclass(frozen=True)
class VWLInference(MultiScale):
    """How the network's maps are computed."""

    title: ClassVar[str] = "VWL"

    flip: bool = True
    """take the maximum of the maps of a picture and of its mirror image"""

    def localizer(self, images: Images, weights: Path) -> CAMLocalizer:
        """The localizer of a trained network, loaded from a stage folder or a published checkpoint (`resnet_cam_epoch_5.pth`).

        Raises:
            BadInput: the weights belong to another network, or their classes are not those of the pictures.
        """
        network = load(weights, images).to(launch.device()).eval()
        # infer_cam.py takes the maximum where IRNet adds, and resizes to the size of the picture
        return CAMLocalizer(network, self, fuse=torch.maximum, multiple=1)


def load(weights: Path, images: Images) -> VWLNetwork:
    """A trained network on the CPU, from a stage folder, its weights file, or a published checkpoint.

    Published checkpoints of VWL-M lack the memory bank, so their words are unknown.

    Raises:
        BadInput: the weights belong to another network, or their classes are not those of the pictures.
    """
    loaded = trained_classifier(weights, images, KIND, _published)
    learned, n_words = "VWE.centroid" in loaded.state, len(loaded.state["fc_b.weight"])
    metadata, n_classes = loaded.metadata, len(images.class_names)
    network = VWLNetwork(metadata["backbone"], n_classes, n_words, learned, metadata["output_stride"])
    bank, aliases = (("bank.*",), IRNET_ALIASES) if loaded.published else ((), ())
    load_into(network, loaded.state, loaded.path, allow_missing=bank, ignore=aliases)
    return network


def _published(state: State, images: Images, path: Path) -> dict[str, object]:
    """Metadata of a published checkpoint. It holds no class names: they are taken to be those of the dataset, in order."""
    blocks = {match[1] for name in state if (match := re.match(r"resnet\.layer3\.(\d+)\.", name))}
    depth = {6: 50, 23: 101, 36: 152}.get(len(blocks))
    heads = [state[name] for name in ("classifier.weight", "fc_a.weight", "fc_b.weight") if name in state]
    if depth is None or len(heads) < 3 or len(heads[0]) != len(images.class_names):
        raise BadInput(
            path,
            f"a classifier of {len(heads[0])} classes"
            if depth and len(heads) == 3
            else f"no network of VWE or VWL (first tensors: {', '.join(list(state)[:3])})",
            f"resnet.*, classifier.weight for {len(images.class_names)} classes, fc_a.weight and fc_b.weight",
            "Give a checkpoint of this network and dataset.",
        )
    return {"backbone": f"resnet{depth}", "output_stride": 16, "classes": images.class_names}


@dataclasses.dataclass(frozen=True)
class WordFigureSettings:
    """A figure that shows where visual words are activated."""

    pictures: int = 100
    """number of pictures, drawn at random, that the figure is made from; 0: no figure"""
    words: int = 12
    """number of words shown: those most characteristic of a class, class by class"""
    patches: int = 7
    """patches shown for each word: where it is most similar to the picture, each from a different picture"""
    examples: int = 6
    """number of pictures shown with the words of all their cells"""

    def __post_init__(self) -> None:
        check_range("words.pictures", self.pictures, 0)
        check_range("words.words", self.words, 1, 20)
        check_range("words.patches", self.patches, 1, 20)
        check_range("words.examples", self.examples, 0)


@stage(kind="words", makes="figures", title="visual words")
def show_words(settings: WordFigureSettings, images: Images, *, weights: Path, out: Path) -> dict[str, int | str]:
    """Write `figure.jpg`: the words most characteristic of the classes, patches with the highest similarity, and pictures with their words.

    Args:
        settings: numbers of pictures, words and patches.
        images: the pictures.
        weights: folder of the trained network, or a published checkpoint.
        out: the stage's folder.

    Raises:
        BadInput: the weights lack the visual words, as published checkpoints of VWL-M do.
    """
    network = load(weights, images)
    if not network.learned and network.bank.updates == 0:
        raise BadInput(
            weights,
            "a network of VWL-M without its memory bank",
            "a network with its visual words",
            "Set words.pictures to 0, or train the network here: published files lack the memory bank.",
        )
    if not launch.is_first():
        return {}
    network = network.to(launch.device()).eval()
    drawn = np.random.default_rng(0).permutation(len(images))[: settings.pictures]
    assignments = []
    with Progress(f"words {out.name}", len(drawn), resumable=False) as progress:
        for index in sorted(drawn.tolist()):
            image = images.read(index)
            assignments.append(WordAssignment(image, images.labels[index], *assign_words(network, image)))
            progress.advance()
    words = characteristic_words(assignments, settings.words)
    figure = draw_words(assignments, words, images.class_names, settings.patches, settings.examples)
    with whole_file(out / FIGURE) as temporary:
        Image.fromarray(figure).save(temporary, "jpeg", quality=85)
    return {
        "pictures": len(assignments),
        "words that fire": len(np.unique(np.concatenate([one.words.ravel() for one in assignments]))),
        "words": len(network.codebook),
        "shown": ", ".join(f"{word.number} ({images.class_names[word.label]})" for word in words),
    }


@torch.inference_mode()
def assign_words(
    network: VWLNetwork, image: UInt8[np.ndarray, "h w 3"]
) -> tuple[Int[np.ndarray, "hs ws"], Float[np.ndarray, "hs ws"]]:
    """The word a of each cell of a picture (RGB), and its similarity s."""
    view = torch.from_numpy(normalise(image))[None].to(network.codebook.device)
    similarity, words = similarities(network.features(view), network.codebook)[0].max(0)
    return words.cpu().numpy(), similarity.cpu().numpy()


def draw_figure(settings: WordFigureSettings, images: Images, weights: Path, out: Path) -> None:
    """Draw the figure, unless `settings.pictures` is 0."""
    if settings.pictures:
        show_words(settings, images, weights=weights, out=out)


METHOD = Method(
    name="vwl",
    paper="VWE and VWL (Ru et al., IJCAI 2021 and IJCV 2022), visual words and hybrid pooling",
    classifier=VWLSettings(),
    extras={"words": Extra(WordFigureSettings(), draw_figure, "a figure of the visual words")},
    inference=VWLInference(),
    # IRNet is unchanged. The segmenter is deeplab-pytorch of VWL's first author, who minimises the mean of the four losses with a learning
    # rate of 1e-3 and decay 5e-4, which equals their sum with 2.5e-4 and 2e-3. Its parameter groups look for a layer of DeepLab v1, so
    # the head has the learning rate of the body, and its biases are not trained
    refiner=IRNetSettings(),
    segmenter=DeepLabSettings(
        head_lr=(1.0, 0.0),
        training=Training(batch=10, epochs=None, steps=20_000, lr=2.5e-4, weight_decay=2e-3, momentum=0.9),
    ),
)
