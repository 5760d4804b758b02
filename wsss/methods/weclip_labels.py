"""The labels of a training step of WeCLIP and WeCLIP+, made anew from what the frozen networks and the decoder give for the same pictures.

For each class c of a picture, M_c is the Grad-CAM of CLIP-ES, and P_c the decoder's probability of the class. W is the mean of some of CLIP's
attention matrices W_l, multiplied element by element with the decoder's affinity A, and T the doubly stochastic matrix that CLIP-ES makes of W:

    e_l = sum of all entries of A - W_l;  chosen are the l with e_l <= mean of e;   W = A (sum of the chosen W_l) / (their number + 1e-5)
    R_c = T T (b_c M_c P_c),  normalised and resized to the picture;   labels = highest of PAR([1 - max_c R_c, R_1, ..])

b_c restricts the sources to the boxes of M_c, where it is used. WeCLIP has no P, and in the first part of its training W is the plain mean
of the W_l.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.arrays import Float, Int
from wsss.errors import BadInput, check_range
from wsss.methods.clip_es import (
    BOX_THRESHOLD,
    COCO_BOX_THRESHOLD,
    check_names,
    last_block,
    normalised,
    text_features,
)
from wsss.methods.clip_es import affinity as doubly_stochastic_affinity
from wsss.networks.clip import CLIP
from wsss.networks.weclip import Tokens
from wsss.ops.boxes import box_mask
from wsss.ops.pixel_refine import PixelRefinement, pixel_refine

_EPSILON = 1e-5
# blocks of a ViT-L
LARGE = 24


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """How labels are made; see `label_rule`.

    Attributes:
        skipped: how many blocks of CLIP before the last one Grad-CAM leaves out.
        chosen_blocks: number of last attention matrices among which the affinity chooses.
        plain_blocks: number of last attention matrices whose plain mean is used without the affinity.
        with_probability: multiply M by P.
        box_threshold: threshold of the boxes that restrict the sources; None: sources are all cells.
        sharpness: factor of CLIP's logit scale in Grad-CAM.
        par: pixel-adaptive refinement.
    """

    skipped: int
    chosen_blocks: int
    plain_blocks: int
    with_probability: bool
    box_threshold: float | None
    sharpness: float
    par: PixelRefinement

    @property
    def attentions(self) -> int:
        """How many attention matrices before that of the last block are needed."""
        return max(self.chosen_blocks, self.plain_blocks) - 1


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """How labels are made in each training step; settings without a value follow the published scripts for VOC or COCO."""

    skipped_blocks: int | None = None
    """blocks of CLIP before the last one that Grad-CAM leaves out; none: 1 for WeCLIP+ on other classes than COCO's, otherwise 0"""
    attention_blocks: int | None = None
    """number of last attention matrices among which the decoder's affinity chooses; none: 6 for VOC, 8 (WeCLIP+) or 10 (WeCLIP) for COCO,
    12 for WeCLIP+ with a CLIP of 24 blocks"""
    plain_blocks: int = 8
    """number of last attention matrices whose mean is used where the affinity does not choose"""
    plain_share: float | None = None
    """share of the training at its start in which the affinity does not choose; none: 0.5 for WeCLIP, 0 for WeCLIP+"""
    boxes: bool | None = None
    """use only the cells inside boxes around the highest cells; none: yes, except for WeCLIP+ on other classes than COCO's"""
    box_threshold: float | None = None
    """threshold of the boxes; none: 0.7 for the classes of COCO, otherwise 0.4"""
    par: PixelRefinement = PixelRefinement()
    """pixel-adaptive refinement of the maps"""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("skipped_blocks", 0, math.inf),
            ("attention_blocks", 1, math.inf),
            ("plain_blocks", 1, math.inf),
            ("plain_share", 0, 1),
            ("box_threshold", 0, 1),
        ):
            if (value := getattr(self, name)) is not None:
                check_range(f"labels.{name}", value, low, high)


def label_rule(settings: LabelSettings, plus: bool, coco: bool, n_blocks: int) -> LabelRule:
    """The rule that is published for a data set, with what the settings change.

    Args:
        settings: of the labels.
        plus: WeCLIP+, not WeCLIP.
        coco: the classes are those of COCO; all others are treated as those of VOC.
        n_blocks: of CLIP; 24 are those of a ViT-L.

    Raises:
        BadInput: the CLIP has too few blocks.
    """
    large = n_blocks >= LARGE
    skipped = int(plus and not coco) if settings.skipped_blocks is None else settings.skipped_blocks
    if n_blocks < skipped + 2:
        expected = f"at least {skipped + 2}, since Grad-CAM leaves out {skipped} before the last one"
        raise BadInput("clip", f"{n_blocks} blocks", expected, "Give a larger CLIP, or set labels.skipped_blocks.")
    published = (12 if large else 8 if coco else 6) if plus else (10 if coco else 6)
    boxes = (coco or not plus) if settings.boxes is None else settings.boxes
    threshold = (
        (COCO_BOX_THRESHOLD if coco else BOX_THRESHOLD) if settings.box_threshold is None else settings.box_threshold
    )
    return LabelRule(
        skipped=skipped,
        chosen_blocks=settings.attention_blocks or published,
        plain_blocks=settings.plain_blocks,
        with_probability=plus,
        box_threshold=threshold if boxes else None,
        sharpness=0.25 if large else 1.0,
        par=settings.par,
    )


@dataclasses.dataclass(frozen=True)
class TextVectors:
    """Unit text vectors of the classes and of the backgrounds, on the device."""

    classes: Float[Tensor, "c d"]
    backgrounds: Float[Tensor, "b d"]

    def of(self, present: Int[Tensor, " k"]) -> Float[Tensor, "t d"]:
        """Those that compete in a picture: its classes and all backgrounds."""
        return torch.cat([self.classes[present], self.backgrounds])


def text_vectors(
    clip: CLIP, prompts: Sequence[str], backgrounds: Sequence[str], templates: Sequence[str], cache: bool = True
) -> TextVectors:
    """The text vectors of classes and backgrounds, on the device of CLIP; see `wsss.methods.clip_es.text_features`.

    Raises:
        BadInput: a text has no token.
    """
    check_names(clip, (*prompts, *backgrounds))
    device = clip.model.logit_scale.device
    return TextVectors(*(one.to(device) for one in text_features(clip, prompts, backgrounds, templates, cache)))


def initial_maps(
    clip: CLIP, tokens: Tokens, index: int, present: Int[Tensor, " k"], texts: TextVectors, rule: LabelRule
) -> tuple[Float[np.ndarray, "k h w"], Float[Tensor, "n n"]]:
    """M of one picture of a batch, in [0, 1], and the attention of the last block.

    Args:
        clip: the network.
        tokens: of the batch.
        index: of the picture in the batch.
        present: classes of the picture, at least one.
        texts: text vectors.
        rule: how labels are made.
    """
    x = tokens.blocks[-1 - rule.skipped][index : index + 1]
    attention, activations, weights = last_block(clip, x, texts.of(present), len(present), sharpness=rule.sharpness)
    assert attention is not None
    maps = (weights @ activations.T).relu().reshape(len(present), *tokens.grid).cpu().numpy()
    return np.stack([normalised(normalised(m)) for m in maps]), attention


def joint_attention(
    attention: Sequence[Float[Tensor, "n n"]], affinity: Float[Tensor, "n n"] | None, rule: LabelRule
) -> Float[Tensor, "n n"]:
    """W, chosen and weighted by the affinity, or the plain mean if there is none.

    Args:
        attention: of CLIP's blocks, the last block's last; only as many as the rule says are used.
        affinity: A.
        rule: how labels are made.
    """
    if affinity is None:
        return torch.stack([*attention[-rule.plain_blocks :]]).mean(0)
    last = torch.stack([*attention[-rule.chosen_blocks :]])
    # e_l is small where the sum of W_l is large; summed in double precision, since close sums decide
    sums = last.sum((1, 2), dtype=torch.float64)
    chosen = last[sums >= sums.mean()]
    return chosen.sum(0) / (len(chosen) + _EPSILON) * affinity


def spread_maps(
    initial: Float[np.ndarray, "k h w"],
    attention: Float[Tensor, "n n"],
    probability: Float[Tensor, "k h w"] | None,
    rule: LabelRule,
) -> Float[np.ndarray, "k h w"]:
    """R on the grid, not normalised.

    Args:
        initial: M.
        attention: W.
        probability: P of the same classes; None: not used.
        rule: how labels are made.
    """
    sources = torch.from_numpy(initial).to(attention)
    if probability is not None:
        sources = sources * probability
    if rule.box_threshold is not None:
        boxes = np.stack([box_mask(m, rule.box_threshold) for m in initial])
        sources = sources * torch.from_numpy(boxes).to(attention.device)
    spread = doubly_stochastic_affinity(attention)
    return (spread @ (spread @ sources.flatten(1).T)).T.reshape(initial.shape).cpu().numpy()


def at_size(maps: Float[np.ndarray, "k h w"], like: Tensor, size_hw: Sequence[int]) -> Float[Tensor, "k hi wi"]:
    """Maps at the size of the picture, bilinear, on the device and in the precision of `like`."""
    planes = torch.from_numpy(maps).to(like)[None]
    return F.interpolate(planes, tuple(size_hw), mode="bilinear", align_corners=False)[0]


def refined_scores(
    maps: Float[Tensor, "k h w"], image: Float[Tensor, "3 h w"], par: PixelRefinement
) -> Float[Tensor, "l h w"]:
    """[1 - highest map, maps] after PAR."""
    background = 1 - maps.amax(0, keepdim=True)
    return pixel_refine(image, torch.cat([background, maps]), par)


class LabelMaker:
    """Makes the labels of pictures.

    Args:
        clip: with frozen weights, on the device.
        texts: text vectors of the classes and the backgrounds.
        rule: how labels are made.
    """

    def __init__(self, clip: CLIP, texts: TextVectors, rule: LabelRule) -> None:
        self.clip, self.texts, self.rule = clip, texts, rule

    def grid_maps(
        self,
        tokens: Tokens,
        index: int,
        present: Int[Tensor, " k"],
        affinity: Float[Tensor, "n n"] | None,
        probability: Float[Tensor, "l h w"] | None,
    ) -> Float[np.ndarray, "k h w"]:
        """R on the grid of one picture of a batch, for each of its classes, normalised to [0, 1].

        Args:
            tokens: of the batch.
            index: of the picture in the batch.
            present: its classes, at least one.
            affinity: A of the picture; None: the plain mean of the attention.
            probability: P of the picture, background first; only used where the rule says so.
        """
        initial, last = initial_maps(self.clip, tokens, index, present, self.texts, self.rule)
        attention = joint_attention([*(one[index] for one in tokens.attention), last], affinity, self.rule)
        chosen = None
        if self.rule.with_probability:
            assert probability is not None
            chosen = probability[present + 1]
        return np.stack([normalised(one) for one in spread_maps(initial, attention, chosen, self.rule)])

    @torch.no_grad()
    def labels(
        self,
        image: Float[Tensor, "b 3 hi wi"],
        tags: Float[Tensor, "b c"],
        tokens: Tokens,
        affinity: Float[Tensor, "b n n"] | None,
        probability: Float[Tensor, "b l h w"],
    ) -> Int[Tensor, "b hi wi"]:
        """Labels of a batch: 0 for background, class + 1. A picture without tags is background.

        Args:
            image: normalised pictures.
            tags: 0 or 1.
            tokens: of these pictures.
            affinity: A; None: the plain mean of the attention.
            probability: P.
        """
        found = torch.zeros(len(image), *image.shape[2:], dtype=torch.int64, device=image.device)
        for index, (picture, row) in enumerate(zip(image, tags, strict=True)):
            present = row.nonzero()[:, 0]
            if len(present) == 0:
                continue
            own = None if affinity is None else affinity[index]
            maps = at_size(self.grid_maps(tokens, index, present, own, probability[index]), picture, picture.shape[1:])
            names = F.pad(present + 1, (1, 0))
            found[index] = names[refined_scores(maps, picture, self.rule.par).argmax(0)]
        return found
