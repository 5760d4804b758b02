"""VWE: learning visual words for weakly-supervised semantic segmentation (Ru et al., IJCAI 2021), and VWL (Ru et al., IJCV 2022).

A CAM network learns a second target that it makes itself: which of K visual words b_k a picture has. With X >= 0 the deepest
features of a picture, y its tags, and l the multi-label soft margin:

    s_k = <X / |X|, b_k / |b_k|>,  a = argmax_k s_k,  p = softmax_k(tau s_k)        at each cell
    y_word,k = [some cell has a = k],  H_k = sum of p_k over the cells
    P(X) = (gamma avg X + sum over levels l of M_l(X)) / (gamma + number of levels)
    L = l(W_c P(X), y) + l(W_b avg X, y_word) + l(W_a H, y) + (|G|_F - |diag G|_2) / 2

M_l is the mean of the maxima of l x l cells (hybrid pooling), G the Gram matrix of the words, each less its mean. VWE learns the
words by the third term, VWL-L by the last as well; VWL-M has neither, and moves each word towards the features that go to it.
"""

import dataclasses
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from wsss import launch
from wsss.classifier import CAMLocalizer, MultiScale, example, freeze, trained_classifier
from wsss.data.augment import ClassifierAugment, normalise
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone
from wsss.networks.irnet import IRNET_ALIASES
from wsss.networks.resnet import ResNet
from wsss.objective import Objective, body_and_head
from wsss.ops.visual_words import Fired, draw_words, telling_words
from wsss.progress import Progress
from wsss.recipe import Extra, Method
from wsss.refiners.irnet import IRNetSettings
from wsss.run import maybe_file, stage
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
    """P(X): the average of a map, and averages of its maxima over squares, added up and divided by the weights.

    At level l a square is (h // l) x (w // l) cells, at least one, which the published code lacks; what is left over at the bottom
    and on the right is dropped.

    Args:
        gamma: weight of the average; 1 is that of a level.
    """
    height, width = x.shape[2:]
    total = gamma * x.mean((2, 3))
    for level in levels:
        total = total + F.max_pool2d(x, (max(height // level, 1), max(width // level, 1))).mean((2, 3))
    return total / (gamma + len(levels))


def similarities(x: Float[Tensor, "n d h w"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "n k h w"]:
    """s: cosines of features and words."""
    return F.conv2d(F.normalize(x, dim=1), F.normalize(codebook, dim=1)[:, :, None, None])


def word_labels(assigned: Int[Tensor, "n h w"], n_words: int) -> Float[Tensor, "n k"]:
    """y_word: 1 for the words that a picture has, 0 for the others."""
    present = torch.zeros(len(assigned), n_words, device=assigned.device)
    return present.scatter_(1, assigned.flatten(1), 1.0)


def histogram(similarity: Float[Tensor, "n k h w"], temperature: float = 1.0) -> Float[Tensor, "n k"]:
    """H: the sum, not the mean, over the cells of softmax(tau s); `temperature` is tau, which multiplies."""
    return (temperature * similarity).softmax(1).sum((2, 3))


def decorrelation_loss(codebook: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """(|G|_F - |diag G|_2) / 2, which is not DeCov's difference of squares.

    The norms are nearly equal, so the difference is taken from their squares: |G - diag G|_F^2 / (|G|_F + |diag G|_2) / 2.
    """
    centred = codebook - codebook.mean(1, keepdim=True)
    gram = centred @ centred.T
    diagonal = gram.diagonal()
    others = (gram - diagonal.diag()).square().sum()
    own = diagonal.square().sum()
    return 0.5 * others / ((others + own).sqrt() + own.sqrt())


def entropy_loss(word_logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Entropy of softmax(word logits), whose probabilities get 1e-8 more, mean over the pictures."""
    p = word_logits.softmax(1) + 1e-8
    return -(p * p.log()).sum(1).mean()


def word_sums(
    x: Float[Tensor, "n d h w"], assigned: Int[Tensor, "n h w"], n_words: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """For each word the sum of the features of its cells, and the number of these cells."""
    sums = x.new_zeros(x.shape[1], n_words)
    # picture by picture: laying out all features as rows would take ten times as long
    for features, words in zip(x.flatten(2), assigned.flatten(1), strict=True):
        sums.index_add_(1, words, features)
    return sums.T, assigned.flatten().bincount(minlength=n_words).to(x.dtype)


class LearnedWords(nn.Module):
    """The codebook of VWE and VWL-L: a parameter, under its published name."""

    def __init__(self, codebook: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.centroid = nn.Parameter(codebook[:, :, None, None])


class MemoryBank(nn.Module):
    """The codebook B of VWL-M, which no gradient reaches: it is kept with the weights, as is the number of its updates."""

    def __init__(self, codebook: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.codebook: Tensor
        self.updates: Tensor
        self.register_buffer("codebook", codebook)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "n d h w"], assigned: Int[Tensor, "n h w"], rate: float, seed: int) -> None:
        """B_k <- (1 - rho) B_k + rho (sum of the features of word k) / (their number + 1e-4), over all processes.

        The first update is another one, as published: features drawn at random from the batch, with replacement.

        Args:
            x: features, not normalised.
            assigned: the word of each.
            rate: rho.
            seed: of the draw.
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
    """Backbone, classifier, and the two layers between pictures, words and classes, under the published names.

    Args:
        backbone: its entries are `resnet.*` for any of our ResNets, `backbone.*` for timm's models.
        n_classes: without the background.
        n_words: K.
        learned: the codebook is a parameter (VWE, VWL-L), or a memory bank (VWL-M).
        output_stride: pixels a cell of the deepest features.
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
    def body(self) -> Any:
        """The backbone."""
        return self.get_submodule(self.body_name)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The words, as rows."""
        return self.VWE.centroid[:, :, 0, 0] if self.learned else self.bank.codebook

    def features(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d hs ws"]:
        """X."""
        return self.body(image)[-1]

    def maps(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c hs ws"]:
        """Raw class activation maps, before ReLU; nothing is pooled, so that pictures may have any size."""
        return self.classifier(self.features(image))


@dataclasses.dataclass(frozen=True)
class VWLSettings:
    """The network that maps are taken from, and its visual words."""

    title: ClassVar[str] = "VWL"

    variant: Variant = "vwl-l"
    """the conference version (vwe), or the journal's with learned words (vwl-l) or a memory bank (vwl-m)"""
    backbone: str = "auto"
    """resnet18 .. resnet152, or any timm model that gives features; auto: resnet50 for vwe, resnet101 for the others"""
    output_stride: int = 16
    """pixels a cell of the maps"""
    init: str = maybe_file("imagenet")
    """initial weights of the backbone: `imagenet`, `none`, or a file"""
    frozen: Literal["auto", "nothing", "stem", "stages"] = "auto"
    """what keeps its weights, and all batch-norm statistics with it; auto: stem and two stages, vwl-m the stem, nothing if new"""
    heads_lr: float = 10.0
    """learning rate of the classifier, the words and the layers between them, times that of the body"""
    words: int = 256
    """K, the number of visual words"""
    # an argument of VWL-L's network, which no script sets: H is nearly flat at 1
    temperature: float = 1.0
    """tau, which multiplies similarities before the softmax of the histogram"""
    # VWL-L's file had 0 from July to September 2021, when its numbers were published; what made them is not known
    gamma: float = 2.0
    """weight of the average in the hybrid pooling"""
    levels: tuple[int, ...] = (1, 2, 4)
    """the map's maxima are taken over so many squares an axis"""
    bank_rate: float = 1e-3
    """rho, how far an update moves the words of vwl-m"""
    decorrelation: float = 1.0
    """weight of the decorrelation of the words of vwl-l"""
    # VWL-L computes it and leaves it out of its sum; a remark there has 0.1
    entropy: float = 0.0
    """weight of the entropy of the words that a picture is said to have"""
    augment: ClassifierAugment = ClassifierAugment()
    """what training pictures go through"""
    # PolyOptimizer hands its weight decay to SGD's momentum, and takes its own momentum of 0.9 for the schedule's exponent
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
        """Where training ends if `training.stop_epochs` does not say: VWL-L's inference reads the file of the fifth of six epochs."""
        published = self.variant == "vwl-l" and self.training.steps is None and self.training.epochs == 6
        return 5 if published else None

    @property
    def body(self) -> str:
        """The backbone's name."""
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
        with torch.device("meta"):
            body = create_backbone(self.body, self.output_stride)
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
    """The losses; the forward pass of VWL-M moves its words too, in training."""

    def __init__(self, settings: VWLSettings, network: VWLNetwork, images: Images) -> None:
        examples = partial(example, images, settings.augment, "imagenet")
        metadata: dict[str, Any] = {
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
        # VWL-M leaves the words' classes out of its loss, so that fc_a stays as it is
        network.fc_a.requires_grad_(network.learned)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        x = self.network.features(batch["image"])
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(x.to(torch.promote_types(x.dtype, torch.float32)), batch["label"])

    def losses(self, x: Float[Tensor, "n d h w"], label: Float[Tensor, "n c"]) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of features X, whose gradient the words' assignment does not reach."""
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
    """A 1x1 convolution of vectors."""
    return F.linear(vectors, layer.weight[:, :, 0, 0])


@dataclasses.dataclass(frozen=True)
class VWLInference(MultiScale):
    """How maps are taken from the network."""

    title: ClassVar[str] = "VWL"

    flip: bool = True
    """take the maximum with the maps of the mirror image"""

    def localizer(self, images: Images, weights: Path) -> CAMLocalizer:
        """A trained network, ready to give maps: of a stage folder, or a published checkpoint (`resnet_cam_epoch_5.pth`).

        Raises:
            BadInput: the weights are of another network, or of other classes than the pictures have.
        """
        network = load(weights, images).to(launch.device()).eval()
        # infer_cam.py takes the maximum, where IRNet adds, and resizes to the picture itself
        return CAMLocalizer(network, self, fuse=torch.maximum, multiple=1)


def load(weights: Path, images: Images) -> VWLNetwork:
    """A trained network on the CPU: of a stage's folder, its file, or a published checkpoint, for these pictures.

    A published checkpoint of VWL-M lacks its memory bank, whose words stay unknown then.

    Raises:
        BadInput: the weights are of another network, or of other classes than the pictures have.
    """
    known = trained_classifier(weights, images, KIND, _published)
    learned, n_words = "VWE.centroid" in known.state, len(known.state["fc_b.weight"])
    metadata, n_classes = known.metadata, len(images.class_names)
    network = VWLNetwork(metadata["backbone"], n_classes, n_words, learned, metadata["output_stride"])
    bank, aliases = (("bank.*",), IRNET_ALIASES) if known.published else ((), ())
    load_into(network, known.state, known.path, allow_missing=bank, ignore=aliases)
    return network


def _published(state: State, images: Images, path: Path) -> dict[str, Any]:
    """What a published checkpoint is; it says nothing itself, and its classes are the data set's in order."""
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
            "Give a checkpoint of this network and data set.",
        )
    return {"backbone": f"resnet{depth}", "output_stride": 16, "classes": images.class_names}


@dataclasses.dataclass(frozen=True)
class WordFigureSettings:
    """A look inside: which visual words fire where."""

    pictures: int = 100
    """pictures that are looked at, drawn at random; 0: no look inside"""
    words: int = 12
    """words that are shown: those that go best with a class, class by class"""
    patches: int = 7
    """for each of them, so many places where it fires most surely, each in another picture"""
    examples: int = 6
    """whole pictures that are shown with their words"""

    def __post_init__(self) -> None:
        check_range("words.pictures", self.pictures, 0)
        check_range("words.words", self.words, 1, 20)
        check_range("words.patches", self.patches, 1, 20)
        check_range("words.examples", self.examples, 0)


@stage(kind="words", makes="figures", title="visual words")
def show_words(settings: WordFigureSettings, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Write `figure.jpg`: the words that go best with the classes, where they fire most surely, and pictures with their words.

    Args:
        settings: how much of it.
        images: the pictures.
        weights: folder of the trained network, or a published checkpoint.
        out: the stage's folder.

    Raises:
        BadInput: the network does not know its words, as published checkpoints of VWL-M do not.
    """
    network = load(weights, images)
    if not network.learned and network.bank.updates == 0:
        raise BadInput(
            weights,
            "a network of VWL-M without its memory bank",
            "visual words to look at",
            "Set words.pictures to 0, or train the network here: the published files leave the bank out.",
        )
    if not launch.is_first():
        return {}
    network = network.to(launch.device()).eval()
    drawn = np.random.default_rng(0).permutation(len(images))[: settings.pictures]
    fired = []
    with Progress(f"words {out.name}", len(drawn), resumable=False) as progress:
        for index in sorted(drawn.tolist()):
            image = images.read(index)
            fired.append(Fired(image, images.labels[index], *fire(network, image)))
            progress.advance()
    words = telling_words(fired, settings.words)
    figure = draw_words(fired, words, images.class_names, settings.patches, settings.examples)
    with whole_file(out / FIGURE) as temporary:
        Image.fromarray(figure).save(temporary, "jpeg", quality=85)
    return {
        "pictures": len(fired),
        "words that fire": len(np.unique(np.concatenate([one.words.ravel() for one in fired]))),
        "words": len(network.codebook),
        "shown": ", ".join(f"{word.number} ({images.class_names[word.label]})" for word in words),
    }


@torch.inference_mode()
def fire(
    network: VWLNetwork, image: UInt8[np.ndarray, "h w 3"]
) -> tuple[Int[np.ndarray, "hs ws"], Float[np.ndarray, "hs ws"]]:
    """The word a of each cell of a picture (RGB), and the similarity s of the two."""
    view = torch.from_numpy(normalise(image))[None].to(network.codebook.device)
    similarity, words = similarities(network.features(view), network.codebook)[0].max(0)
    return words.cpu().numpy(), similarity.cpu().numpy()


def draw_figure(settings: WordFigureSettings, images: Images, weights: Path, out: Path) -> None:
    """Draw which words fire where, unless no picture is wanted."""
    if settings.pictures:
        show_words(settings, images, weights=weights, out=out)


METHOD = Method(
    name="vwl",
    paper="VWE and VWL (Ru et al., IJCAI 2021 and IJCV 2022), visual words and hybrid pooling",
    classifier=VWLSettings(),
    extras={"words": Extra(WordFigureSettings(), draw_figure, "a figure of the visual words")},
    inference=VWLInference(),
    # IRNet as it is; the segmenter is deeplab-pytorch of VWL's first author, who minimises the mean of the four losses at 1e-3
    # and decay 5e-4, which is their sum at 2.5e-4 and 2e-3; its groups look for a layer of DeepLab v1, so that the head has the body's
    # rate and its biases have none
    refiner=IRNetSettings(),
    segmenter=DeepLabSettings(
        head_lr=(1.0, 0.0),
        training=Training(batch=10, epochs=None, steps=20_000, lr=2.5e-4, weight_decay=2e-3, momentum=0.9),
    ),
)
