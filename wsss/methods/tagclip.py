"""TagCLIP: improving discrimination ability of zero-shot multi-label classification (Lin et al., AAAI 2024).

Tags for untagged pictures, from a frozen CLIP; nothing is trained. f_i is the unit vector of patch i after the last block, in which
patches do not attend to each other; T_k are the unit text vectors of the classes and backgrounds:

1. coarse scores P_ik = softmax_k(s <T_k, f_i>);
2. dual-masking attention refinement (DMAR): R_k = W (b_k P_k), where the attention W is masked to pairs of patches with enough
   votes of the blocks, and b_k masks boxes around the high values of W P_k;
3. class-wise re-identification (CWR): the region of each candidate class is cropped. The score of the class is the mean of max R_k
   and of the score that CLIP's class token gives to the region.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, UInt8
from wsss.data.images import Dataset, Images
from wsss.data.tables import cannot_be_listed, labels_by_name, labels_of, name_in_table, table_text
from wsss.data.words import IMAGENET_TEMPLATES, check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.methods.clip_es import check_names, patched, text_features
from wsss.networks.clip import CLIP
from wsss.networks.receptive import OF_CHANNEL
from wsss.ops.boxes import box_mask
from wsss.pretrained import FromCLIP, load_clip
from wsss.run import maybe_file, stage, unrecorded
from wsss.stages.each import for_each_picture, read_prepared, within_budget
from wsss.storage import read_json, whole_file, write_json
from wsss.tag_metrics import average_precision, precision_recall

TAGS = "tags.csv"

# the templates of TagCLIP: five about scenes are added
TEMPLATES = (
    *IMAGENET_TEMPLATES,
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

# added to masked attention logits: between patches in the last block, and of the class token to patches outside a region
_BETWEEN_PATCHES, _OUTSIDE = -100.0, -1000.0
# why a SigLIP is refused
_LACKS = "no class token to score regions with"


@dataclasses.dataclass(frozen=True)
class TagCLIPSettings(FromCLIP):
    """How tags are predicted with CLIP. Published for COCO-Stuff: ratio 0.1, attention_blocks null, backgrounds false."""

    words: str = maybe_file("auto")
    """texts of the classes and backgrounds: a YAML file, or auto for the class names and the backgrounds of CLIP-ES"""
    templates: tuple[str, ...] = TEMPLATES
    """sentences that the texts are inserted into; their features are averaged"""
    backgrounds: bool = True
    """include the background texts in the softmax"""
    ratio: float = 0.5
    """threshold of a class's score, between a picture's lowest score (0) and its highest (1)"""
    votes: int = 4
    """number of blocks in which the attention between two patches must be above average for it to be kept"""
    attention_blocks: int | None = 3
    """number of blocks before the last whose attention is averaged; null for all"""
    early_stop: bool = True
    """stop the re-identification at a region that lies only in the last row or column of patches, as published; false continues"""
    crop_batch: int = 16
    """number of regions that CLIP encodes in one batch"""
    cache: bool = unrecorded(True)
    """cache text features on disk"""

    def __post_init__(self) -> None:
        check_range("ratio", self.ratio, 0, 1)
        check_range("votes", self.votes, 0)
        check_range("crop_batch", self.crop_batch, 1)
        if self.attention_blocks is not None:
            check_range("attention_blocks", self.attention_blocks, 1)
        check_templates("templates", self.templates)

    def tagger(self, images: Images) -> "Tagger":
        """The tagger: CLIP on the device, with the text features of these classes."""
        words = read_words(self.words, images.class_names)
        device = launch.device()
        clip = load_clip(self.clip, self.activation, _LACKS).to(device)
        if self.votes > clip.n_blocks:
            raise BadInput("votes", str(self.votes), f"at most {clip.n_blocks}, the blocks of this CLIP", "Lower it.")
        background = words.background if self.backgrounds else ()
        check_names(clip, (*words.names, *background))
        classes, backgrounds = text_features(clip, words.names, background, self.templates, self.cache)
        return Tagger(clip, classes.to(device), backgrounds.to(device), self)


class Region(NamedTuple):
    """The region of a candidate class.

    Attributes:
        cls: 0-based class.
        rows, columns: bounding box, in patches.
        mask: the patches in the bounding box that belong to the class.
    """

    cls: int
    rows: slice
    columns: slice
    mask: Bool[Tensor, "h w"]


class Tagger:
    """Computes scores of all classes for a picture.

    Args:
        clip: with frozen weights, on the device.
        classes: unit text vectors of the classes.
        backgrounds: unit text vectors of the backgrounds; may have no rows.
        settings: of the method.
    """

    def __init__(
        self, clip: CLIP, classes: Float[Tensor, "c d"], backgrounds: Float[Tensor, "b d"], settings: TagCLIPSettings
    ) -> None:
        self.clip, self.settings = clip, settings
        self.texts, self.n_classes = torch.cat([classes, backgrounds]), len(classes)
        last, count = clip.n_blocks - 1, settings.attention_blocks
        self.averaged = range(0 if count is None else max(0, last - count), last)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 hp wp"]:
        """The picture, resized so that both sides are multiples of the patch, and normalised.

        Raises:
            BadInput: it has a single row or column of patches, so that no box could contain any.
        """
        height, width = image.shape[:2]
        if min(height, width) <= self.clip.patch:
            expected = f"sides longer than a patch ({self.clip.patch} pixels)"
            raise BadInput("the picture", f"{height}x{width} pixels", expected, "Leave it out.")
        return torch.from_numpy(patched(image, self.clip.patch, self.clip.colours))[None]

    def bytes_for(self, size_hw: tuple[int, int]) -> float:
        """About the bytes that a picture of this height and width takes, from when it is prepared until its scores are written."""
        attention, pixels, cell = self.clip.last_block().self_attn, math.prod(size_hw), self.clip.patch**2
        patches, tokens = pixels / cell, self.clip.native_grid**2 + 1
        of_token = OF_CHANNEL * attention.embed_dim
        # matrices between patches: the bias, votes, sums and means of attention, and that of a head
        between = 40 * patches**2
        # crops in a batch, and their attention
        crops = self.settings.crop_batch * tokens * (12 * cell + of_token + 4 * tokens * (attention.num_heads + 2))
        return 27 * pixels + max(between + patches * of_token, between / 2 + crops)

    @torch.no_grad()
    def scores(self, view: Float[Tensor, "1 3 hp wp"]) -> Float[np.ndarray, " c"]:
        """A score in [0, 1] for each class; scores of different pictures are not comparable."""
        view = view.to(self.texts.device)
        coarse, affinity = self.patch_scores(view)
        grid = view.shape[2] // self.clip.patch, view.shape[3] // self.clip.patch
        return self.reidentified(view, refined(coarse, affinity, grid)).cpu().numpy()

    def patch_scores(self, view: Float[Tensor, "1 3 hp wp"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n n"]]:
        """P, a distribution over classes and backgrounds for each patch, and the voted attention W between patches."""
        grid = view.shape[2] // self.clip.patch, view.shape[3] // self.clip.patch
        x = self.clip.embed(view, self._positions(grid))
        bias = torch.full((x.shape[1], x.shape[1]), _BETWEEN_PATCHES, device=x.device).fill_diagonal_(0)
        n = grid[0] * grid[1]
        votes = torch.zeros(n, n, dtype=torch.int32, device=x.device)
        total = torch.zeros(n, n, device=x.device)
        for index in range(self.clip.n_blocks):
            # the vote of the last block uses its unmasked attention
            x, attention = self.clip.block(index, x, bias if index == self.clip.n_blocks - 1 else None, average=True)
            assert attention is not None
            between = attention[0, 1:, 1:]
            votes += between > between.mean()
            if index in self.averaged:
                total += between
        affinity = total / len(self.averaged) * (votes >= self.settings.votes)
        return self._probabilities(x[0, 1:]), affinity

    def reidentified(self, view: Float[Tensor, "1 3 hp wp"], scores: Float[Tensor, "n k"]) -> Float[Tensor, " c"]:
        """Scores of the classes, from the refined scores of the patches and the re-identified regions of candidate classes."""
        best = scores[:, : self.n_classes].amax(0)
        regions = self.regions(scores, (view.shape[2] // self.clip.patch, view.shape[3] // self.clip.patch))
        for start in range(0, len(regions), self.settings.crop_batch):
            batch = regions[start : start + self.settings.crop_batch]
            chosen = torch.tensor([region.cls for region in batch], device=best.device)
            again = self.class_token_scores(*self.crops(view, batch))
            best[chosen] = 0.5 * best[chosen] + 0.5 * again.gather(1, chosen[:, None])[:, 0]
        return best

    def regions(self, scores: Float[Tensor, "n k"], grid: tuple[int, int]) -> list[Region]:
        """The regions of the classes whose scores exceed the threshold, in the order of the classes."""
        low, high = scores.min(), scores.max()
        likely = scores[:, : self.n_classes].amax(0) > low + self.settings.ratio * (high - low)
        found = []
        for cls in likely.nonzero()[:, 0].tolist():
            mask = (_rescaled(scores[:, cls : cls + 1]) > 0.5).reshape(grid)
            # the last row and the last column are cut off, as published
            rows, columns = (_extent(mask.any(axis), side - 1) for axis, side in ((1, grid[0]), (0, grid[1])))
            if rows and columns:
                found.append(Region(cls, rows, columns, mask[rows, columns]))
            elif self.settings.early_stop:
                # classify.py returns here, so all later classes keep their scores
                break
        return found

    def crops(
        self, view: Float[Tensor, "1 3 hp wp"], regions: list[Region]
    ) -> tuple[Float[Tensor, "b 3 s s"], Bool[Tensor, "b g g"]]:
        """Crops of regions, resized to the input size of CLIP, and which of their patches belong to the class."""
        patch, side = self.clip.patch, self.clip.native_grid
        pictures = [
            F.interpolate(
                view[:, :, r.start * patch : r.stop * patch, c.start * patch : c.stop * patch],
                (side * patch, side * patch),
                mode="bilinear",
                align_corners=False,
            )
            for _, r, c, _ in regions
        ]
        masks = [F.interpolate(region.mask[None, None].float(), (side, side), mode="nearest") for region in regions]
        return torch.cat(pictures), torch.cat(masks)[:, 0] > 0.5

    def class_token_scores(
        self, pictures: Float[Tensor, "b 3 h w"], masks: Bool[Tensor, "b gh gw"]
    ) -> Float[Tensor, "b k"]:
        """Probabilities by the class token, which in every block attends only to itself and to the patches in the mask."""
        x = self.clip.embed(pictures, self._positions((masks.shape[1], masks.shape[2])))
        bias = x.new_zeros(len(x), 1, x.shape[1], x.shape[1])
        bias[:, 0, 0, 1:].masked_fill_(~masks.flatten(1), _OUTSIDE)
        for index in range(self.clip.n_blocks):
            x, _ = self.clip.block(index, x, bias)
        return self._probabilities(x[:, 0])

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "l width"]:
        # rounded to float16 unless the grid is CLIP's native one, as published
        return self.clip.positions(grid, rounded=grid != (self.clip.native_grid, self.clip.native_grid))

    def _probabilities(self, tokens: Float[Tensor, "m width"]) -> Float[Tensor, "m k"]:
        return (self.clip.temperature * F.normalize(self.clip.project(tokens), dim=1) @ self.texts.T).softmax(1)


def refined(
    coarse: Float[Tensor, "n k"], affinity: Float[Tensor, "n n"], grid: tuple[int, int]
) -> Float[Tensor, "n k"]:
    """R_k = W (b_k P_k), where b_k masks the boxes around the regions of W P_k above its mean."""
    maps = _rescaled(affinity @ coarse).T.reshape(-1, *grid).cpu().numpy()
    boxes = np.stack([box_mask(m, float(m.mean())) for m in maps])
    return affinity @ (torch.from_numpy(boxes).flatten(1).T.to(coarse) * coarse)


def _rescaled(scores: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Columns rescaled to [0, 1]. A constant column, which the published code turns into NaN, becomes 0: it has no region."""
    shifted = scores - scores.amin(0)
    top = shifted.amax(0)
    return shifted / top.where(top > 0, 1)


def _extent(mask: Bool[Tensor, " n"], end: int) -> slice | None:
    """From the first to the last True before `end`."""
    positions = mask.nonzero()[:, 0].tolist()
    return slice(positions[0], min(positions[-1] + 1, end)) if positions and positions[0] < end else None


def select(scores: Float[np.ndarray, "n c"], ratio: float) -> Bool[np.ndarray, "n c"]:
    """The classes of each picture with scores above min + ratio (max - min), or the best one if there are none."""
    low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    chosen = scores > low + ratio * (high - low)
    none = ~chosen.any(1)
    chosen[none, scores[none].argmax(1)] = True
    return chosen


def _write(path: Path, scores: list[float]) -> None:
    write_json(path, {"scores": scores}, sync="file")


@stage(kind="tag", makes="tags", title="TagCLIP")
def tag(settings: TagCLIPSettings, images: Images, *, out: Path) -> dict[str, float | None]:
    """Write `tags.csv` (`image`, and `tags` separated by `;`) and `scores.npz` (`names`, `classes`, float32 `scores`).

    The scores of a picture are written to `pictures/NAME.json` at once, so a killed stage can be resumed. If the pictures
    have tags, the predicted tags are evaluated against them.

    Raises:
        BadInput: a class name contains a separator of tags, or a picture is too small.
    """
    if (name := cannot_be_listed(images.class_names)) is not None:
        raise BadInput(f"the class name {name!r}", "a separator of tags", "none of ; | ,", "Rename the class.")
    tagger = settings.tagger(images)
    folder = out / "pictures"

    def compute(_: int, loaded: tuple[Float[Tensor, "1 3 h w"], tuple[int, int]]) -> list[float]:
        return tagger.scores(loaded[0]).tolist()

    load = partial(read_prepared, tagger.prepare, images)
    needs = within_budget(images, lambda _, size_hw: tagger.bytes_for(size_hw), ", or shrink the picture")
    for_each_picture(images, folder, ".json", load, compute, _write, title=f"tag {out.name}", needs=needs)
    launch.wait()
    return launch.decided_by_first(lambda: _join(settings, images, folder, out))


def tagged(settings: TagCLIPSettings, data: Dataset, *, out: Path) -> Dataset:
    """The dataset with the tags of its training split replaced by those of TagCLIP."""
    images = data.split(data.train)
    table = tag(settings, images, out=out) / TAGS
    labels, _ = labels_of(images.names, labels_by_name(table, images.class_names), len(images.class_names))
    retagged = dataclasses.replace(images, labels=labels)
    return dataclasses.replace(data, splits={**data.splits, data.train: retagged})


def _join(settings: TagCLIPSettings, images: Images, folder: Path, out: Path) -> dict[str, float | None]:
    read = [read_json(folder / f"{name}.json", "the scores of a picture")["scores"] for name in images.names]
    scores = np.array(read, np.float32).reshape(images.labels.shape)
    tags = select(scores, settings.ratio)
    with whole_file(out / "scores.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, names=np.array(images.names), classes=np.array(images.class_names), scores=scores)
    rows: list[tuple[str, str]] = [("image", "tags")]
    for index, (name, row) in enumerate(zip(images.names, tags, strict=True)):
        image = name_in_table(name, images.where(index))
        rows.append((image, ";".join(images.class_names[cls] for cls in np.flatnonzero(row))))
    # names that are not UTF-8 keep their bytes
    with whole_file(out / TAGS) as temporary:
        temporary.write_text(table_text(rows), encoding="utf-8", errors="surrogateescape", newline="")
    return {"images": len(images), "tags": int(tags.sum()), **_quality(images.labels, tags, scores)}


def _quality(
    truth: Bool[np.ndarray, "n c"], tags: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]
) -> dict[str, float | None]:
    """Overall precision, recall and F1, and mAP; empty if there are no true tags."""
    if not truth.any():
        return {}
    overall = precision_recall(truth, tags, "overall")
    quality = {**overall._asdict(), "map": float(average_precision(truth, scores).mean())}
    return {name: None if math.isnan(value) else value for name, value in quality.items()}
