"""WeCLIP: frozen CLIP, a strong backbone for weakly supervised semantic segmentation (Zhang et al., CVPR 2024), and WeCLIP+ (TPAMI 2025).

CLIP and, for WeCLIP+, DINOv2 stay frozen. A decoder of a few million parameters turns their tokens into logits (`wsss.networks.weclip`). Its labels
are made anew in every step from the same tokens (`wsss.methods.weclip_labels`), and its losses are in `wsss.methods.weclip_losses`:

    WeCLIP:   seg(L, y) + 0.1 affinity
    WeCLIP+:  seg(L, y) + dice(L, y) + 0.1 cross(L_c, L_d) + 0.1 affinity

Late in the training of WeCLIP+, labels are replaced by confident predictions. The published code computes the output projection of all attention in
float16; here it has the precision of the other layers. It stops at a picture without tags, which here is background.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, Int
from wsss.data.augment import WeCLIPAugment
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.images import Images
from wsss.data.words import check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.methods.weclip_labels import LabelMaker, LabelSettings, label_rule, text_vectors
from wsss.methods.weclip_losses import affinity_loss, cell_labels, cross_losses, dice_loss, pairs, replaced
from wsss.methods.weclip_maps import LabelScoreSettings, WeCLIPInference, score_labels
from wsss.networks.deeplab import balanced_cross_entropy, resize_logits
from wsss.networks.weclip import Decoded, FrozenNetworks, Tokens, WeCLIPNetwork, affinity
from wsss.objective import Objective
from wsss.plan import Work
from wsss.pretrained import Activation
from wsss.recipe import Extra, Method
from wsss.refiners.crf import CRFSettings
from wsss.run import maybe_file, pretrained
from wsss.segmenters.learning import typical_long_sides
from wsss.segmenters.weclip import (
    FIRST,
    KIND,
    WeCLIPSegmenterSettings,
    described,
    keep_networks,
    load_frozen,
    new_network,
)
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.predict import PredictSettings
from wsss.stages.train import Training, update_count
from wsss.supervision import PAIRS, SELF
from wsss.weights import write_weights

# channels of the largest DINOv2 with a published number of decoder blocks, and that number
_LARGE_DINO, _LARGE_DECODER = 1024, 5


@dataclasses.dataclass(frozen=True)
class WeCLIPWeights:
    """Weights of the losses; that of the segmentation loss is 1."""

    dice: float = 1.0
    """weight of the Dice loss (WeCLIP+)"""
    cross: float = 0.1
    """weight of the losses of each adapter on the predictions of the other (WeCLIP+)"""
    affinity: float = 0.1
    """weight of the loss of the affinities of pairs of cells"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f"weights.{field.name}", getattr(self, field.name), 0)


@dataclasses.dataclass(frozen=True)
class WeCLIPSettings:
    """Adapters and a decoder on frozen networks."""

    variant: Literal["weclip+", "weclip"] = "weclip+"
    """weclip+: CLIP and DINOv2 (TPAMI 2025); weclip: CLIP alone (CVPR 2024)"""
    clip: str = pretrained("openai/clip-vit-base-patch16", PAIRS)
    """the frozen CLIP: a Hugging Face hub id, a folder saved by transformers, or a checkpoint of OpenAI (ViT-B-16.pt) or open_clip"""
    activation: Activation = "quick_gelu"
    """activation of an open_clip state dict, which does not record it: gelu for most of them"""
    dino: str = pretrained("facebook/dinov2-small", SELF)
    """the frozen DINOv2 of WeCLIP+: a Hugging Face hub id or a folder saved by transformers; other transformers for dense features work too"""
    words: str = maybe_file("auto")
    """texts of the classes and backgrounds: a YAML file, or auto for the lists of CLIP-ES"""
    templates: tuple[str, ...] = ("a clean origami {}.",)
    """sentences that the texts are inserted into; their features are averaged"""
    embedding: int = 256
    """channels of the adapters and of the decoder"""
    heads: int = 8
    """attention heads of the decoder"""
    decoder_blocks: int | None = None
    """blocks of the decoder; none: 3, and 5 with a DINOv2 of 1024 channels (ViT-L)"""
    dropout: float = 0.1
    """share of the channels of each adapter that are dropped in the training, where labels are made too"""
    radius: int = 8
    """largest distance of two cells whose affinity is trained, in rows and in columns"""
    weights: WeCLIPWeights = WeCLIPWeights()
    """weights of the losses"""
    labels: LabelSettings = LabelSettings()
    """how labels are made"""
    replaced_after: float | None = None
    """share of the training after which confident predictions replace labels in WeCLIP+; none: 0.5 for the classes of COCO, otherwise 0.6;
    1: never"""
    confidence: float = 0.75
    """probability above which a prediction replaces a label"""
    views: WeCLIPAugment = WeCLIPAugment()
    """augmentation of training pictures"""
    test_side: int = 512
    """longest side of pictures when the decoder predicts, in pixels"""
    # the published 20e-5 of the WeCLIP+ scripts; WeCLIP's have 2e-3 (preset paper), COCO 80,000 updates of 8 pictures
    training: Training = Training(
        batch=4,
        epochs=None,
        steps=30_000,
        optimizer="adamw",
        lr=2e-4,
        weight_decay=0.01,
        poly_power=1.0,
        warmup=50,
        warmup_from=1e-6,
    )
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_templates("classifier.templates", self.templates)
        check_range("classifier.heads", self.heads, 1)
        check_range("classifier.radius", self.radius, 0)
        check_range("classifier.test_side", self.test_side, 16)
        check_range("classifier.dropout", self.dropout, 0, 0.9)
        check_range("classifier.confidence", self.confidence, 0, 1)
        if self.replaced_after is not None:
            check_range("classifier.replaced_after", self.replaced_after, 0, 1)
        if self.decoder_blocks is not None:
            check_range("classifier.decoder_blocks", self.decoder_blocks, 1)
        if self.embedding < 1 or self.embedding % self.heads:
            expected = f"a multiple of classifier.heads, which is {self.heads}"
            raise BadInput("classifier.embedding", str(self.embedding), expected, "Change one of them.")

    @property
    def plus(self) -> bool:
        """Whether this is WeCLIP+."""
        return self.variant == "weclip+"

    @property
    def title(self) -> str:
        """Name of the variant, in reports and records."""
        return "WeCLIP+" if self.plus else "WeCLIP"

    @property
    def sources(self) -> dict[str, str]:
        """Where the frozen networks come from."""
        return {"clip": self.clip, **({"dino": self.dino} if self.plus else {})}

    @property
    def unused_networks(self) -> tuple[str, ...]:
        """See `wsss.supervision.ChoosesNetworks`."""
        return () if self.plus else ("dino",)

    def load_frozen(self) -> FrozenNetworks:
        """CLIP and DINOv2, on the CPU."""
        return load_frozen(self.clip, self.activation, self.sources.get("dino"))

    def check(self, images: Images) -> None:
        """Raise BadInput for words or networks that cannot be used, before any stage runs."""
        read_words(self.words, images.class_names)
        frozen = self.load_frozen()
        label_rule(self.labels, self.plus, is_coco(images), frozen.clip.n_blocks)
        for name, side in (("views.crop", self.views.crop), ("test_side", self.test_side)):
            check_range(f"classifier.{name}", side, frozen.smallest)

    def trainable(self, images: Images) -> "WeCLIPObjective":
        """The network with new weights, and its losses; the frozen networks are moved to the device."""
        return WeCLIPObjective(self, images, self.load_frozen())

    @property
    def training_side(self) -> int:
        """See `wsss.plan.Measurable`."""
        return self.views.crop

    def measurable(self, images: Images) -> Callable[[int, int], Work]:
        """See `wsss.plan.Measurable`: a whole training step of pictures with one tag, or the labels of one such picture."""
        device, frozen = launch.device(), self.load_frozen()
        learning = WeCLIPObjective(self, images, frozen)
        learning.to(device).train()
        weights = sum(value.numel() * value.element_size() for value in learning.initial.values())

        def work(side: int, batch: int) -> Work:
            side, count = max(side, frozen.smallest), max(1, batch)
            tags = torch.zeros(count, len(images.class_names), device=device)
            tags[:, 0] = 1
            pictures = torch.randn(count, 3, side, side, device=device)
            factors = torch.ones(count, learning.network.n_adapters, self.embedding, device=device)

            def step() -> Tensor:
                # not `forward`, which waits for the other processes: only the first one measures
                tokens = learning.tokens(pictures)
                decoded = learning.network(tokens, factors)
                made = learning.made_labels(pictures, tags, tokens, decoded, 0)
                if not batch:
                    return made
                logits = [resize_logits(one, (side, side)) for one in decoded.logits]
                return torch.stack([*learning.losses(logits, decoded.features, made, made).values()]).sum()

            return Work(step, count * side**2, weights)

        return work

    def layers(self, frozen: FrozenNetworks) -> dict[str, int]:
        """The sizes of the decoder."""
        dino: Any = frozen.dino
        large = dino is not None and dino.channels[-1] == _LARGE_DINO
        blocks = self.decoder_blocks or (_LARGE_DECODER if large else 3)
        return {"embedding": self.embedding, "heads": self.heads, "decoder_blocks": blocks}


def is_coco(images: Images) -> bool:
    """Whether the classes are those of COCO, for which the published scripts have other settings."""
    return set(images.class_names) == set(COCO_CATEGORIES.values())


class WeCLIPObjective(Objective):
    """The learned layers, the labels and the losses, which are over the batches of all processes.

    Args:
        settings: of the method.
        images: the training pictures.
        frozen: on the CPU; moved to the device, and neither trained nor saved.

    Attributes:
        plain_updates: number of updates at the start in which the affinity does not choose.
        replaced_after: the update after which confident predictions replace labels.
        initial: the learned layers before the training.
    """

    def __init__(self, settings: WeCLIPSettings, images: Images, frozen: FrozenNetworks) -> None:
        layers, coco = settings.layers(frozen), is_coco(images)
        network = new_network(frozen, images.n_labels, layers, not settings.plus)
        words = read_words(settings.words, images.class_names)
        rule = label_rule(settings.labels, settings.plus, coco, frozen.clip.n_blocks)
        metadata = {
            "kind": KIND,
            "variant": settings.variant,
            "classes": list(images.class_names),
            "long_sides": list(typical_long_sides(images)),
            "network": layers,
            "test_side": settings.test_side,
            "prompts": words.prompts,
            "backgrounds": words.background,
            "templates": list(settings.templates),
            "rule": dataclasses.asdict(rule),
            **described(frozen, settings.sources, settings.activation),
        }
        examples = partial(example, images, settings.views, settings.dropout, (network.n_adapters, settings.embedding))
        super().__init__(network, examples, metadata)
        self.network: WeCLIPNetwork
        self.settings = settings
        frozen = frozen.to(launch.device())
        # hidden in partials: submodules would be saved, and synchronised between processes
        self.tokens = partial(frozen, attentions=rule.attentions)
        texts = text_vectors(frozen.clip, words.prompts, words.background, settings.templates)
        self.maker = LabelMaker(frozen.clip, texts, rule)
        steps = update_count(settings.training, len(images))
        plain = settings.labels.plain_share
        self.plain_updates = steps * ((0.0 if settings.plus else 0.5) if plain is None else plain)
        replaced_after = (0.5 if coco else 0.6) if settings.replaced_after is None else settings.replaced_after
        self.replaced_after = steps * replaced_after if settings.plus else float("inf")
        self.initial = {name: value.clone() for name, value in network.state_dict().items()}
        metadata["choosing"] = {"first": self.plain_updates == 0, "last": self.plain_updates <= steps - 1}
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss terms."""
        image, tags = batch["image"], batch["label"]
        tokens = self.tokens(image)
        decoded = self.network(tokens, batch["factors"])
        update = int(self.batches) // self.settings.training.accumulate
        self.batches += 1
        with torch.autocast(image.device.type, enabled=False):
            decoded = Decoded([full(one) for one in decoded.logits], full(decoded.features))
            made = launch.joined(self.made_labels(image, tags, tokens, decoded, update))
            logits = [resize_logits(launch.joined(one), (made.shape[1], made.shape[2])) for one in decoded.logits]
            return self.losses(logits, launch.joined(decoded.features), made, self.final_labels(made, logits, update))

    @torch.no_grad()
    def made_labels(
        self,
        image: Float[Tensor, "b 3 hi wi"],
        tags: Float[Tensor, "b c"],
        tokens: Tokens,
        decoded: Decoded,
        update: int,
    ) -> Int[Tensor, "b hi wi"]:
        """The labels of a batch in an update, before confident predictions replace any."""
        chosen = None if update < self.plain_updates else decoded.affinity()
        return self.maker.labels(full(image), tags, tokens, chosen, decoded.mean().softmax(1))

    @torch.no_grad()
    def final_labels(self, made: Int[Tensor, "b hi wi"], logits: list[Tensor], update: int) -> Int[Tensor, "b hi wi"]:
        """The labels that the decoder is trained on: those made, replaced by confident predictions late in the training."""
        if update <= self.replaced_after:
            return made
        return replaced(made, torch.stack(logits).mean(0), self.settings.confidence)

    def write(self, out: Path) -> None:
        """Write the trained layers, those before the training, and copies of frozen networks that are files."""
        super().write(out)
        write_weights(out / FIRST, self.initial, self.metadata)
        keep_networks(self.settings.sources, out)

    def losses(
        self,
        logits: list[Tensor],
        features: Float[Tensor, "b g h w"],
        made: Int[Tensor, "b hi wi"],
        labels: Int[Tensor, "b hi wi"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted losses of a whole batch.

        Args:
            logits: of each adapter, at the size of the labels.
            features: G.
            made: labels before the replacement, for the affinities.
            labels: labels after it.
        """
        weights, mean = self.settings.weights, torch.stack(logits).mean(0)
        terms = {"segmentation": balanced_cross_entropy(mean, labels)}
        if self.settings.plus:
            terms["dice"] = weights.dice * dice_loss(mean, labels)
            terms["cross"] = weights.cross * torch.stack(cross_losses(*logits)).sum()
        near = pairs(cell_labels(made, (features.shape[2], features.shape[3])), self.settings.radius)
        return terms | {"affinity": weights.affinity * affinity_loss(affinity(features), near)}


def full(value: Tensor) -> Tensor:
    """In float32, if it has less precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def example(
    images: Images,
    augment: WeCLIPAugment,
    dropout: float,
    channels: tuple[int, int],
    index: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """A training example: `image` (3, crop, crop), its tags `label` (c,), and `factors` (adapters, embedding) of the dropout.

    Dropout is drawn here, so that it does not depend on the processes.
    """
    view = augment(images.read(index), rng)
    kept = rng.random(channels, np.float32) >= dropout
    return {
        "image": torch.from_numpy(view),
        "label": torch.from_numpy(images.labels[index].astype(np.float32)),
        "factors": torch.from_numpy(kept.astype(np.float32) / np.float32(1 - dropout)),
    }


METHOD = Method(
    name="weclip",
    paper="WeCLIP (Zhang et al., CVPR 2024) and WeCLIP+ (TPAMI 2025), a decoder on a frozen CLIP and DINOv2",
    classifier=WeCLIPSettings(),
    extras={
        "labels": Extra(
            LabelScoreSettings(),
            score_labels,
            "scores of the labels of the first and the last training step",
            scored=True,
        )
    },
    inference=WeCLIPInference(),
    refiner=CRFSettings(by="par", exponent=1.0),
    segmenter=WeCLIPSegmenterSettings(),
    test=PredictSettings(crf="weclip"),
    scores=ScoreSettings(background="power", thresholds=(1.0, 2.0)),
)
