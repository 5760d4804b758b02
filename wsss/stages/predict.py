"""Run a trained segmenter on pictures."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from wsss import launch, memory
from wsss.arrays import Bool, Float, Float16, Float32, UInt8
from wsss.data.augment import SMALLEST_SCALE
from wsss.data.file_checks import check_files
from wsss.data.files import read_mask, write_mask, write_picture
from wsss.data.images import Dataset, Images, check_labels
from wsss.data.lists import notes_on_unreadable
from wsss.data.open import open_pictures
from wsss.data.predictions import confidences_of, read_probabilities, write_description, write_probabilities
from wsss.data.samples import DEFAULT_READING
from wsss.data.value_range import DEFAULT_REQUEST, ReadingRequest, choose_reading
from wsss.errors import BadInput, check_range, reading
from wsss.networks.features import enlarged_by
from wsss.networks.inference import for_inference
from wsss.networks.receptive import ROUGH, Tiles
from wsss.ops.crf import PRESETS, DenseCRF, Preset, crf_bytes, dense_crf, unary_from_scores
from wsss.ops.regions import Regions
from wsss.ops.thresholds import highest_label
from wsss.outputs import edited_files
from wsss.overlay import overlay
from wsss.precision import Precision, at_least_single, mixed
from wsss.regions.files import read_regions_of
from wsss.run import Makes, OpenStage, StageInfo, open_stage
from wsss.segmenters import SegmenterSettings
from wsss.segmenters.learning import known_long_sides
from wsss.segmenters.retrieval import TrainedRetrieval
from wsss.segmenters.trained import TrainedSegmenter
from wsss.stages.each import for_each_picture, within_budget
from wsss.stream import in_threads
from wsss.weights import reading_of, trained_weights

log = logging.getLogger("wsss")

SEGMENTERS = {kind.kind: kind for kind in get_args(SegmenterSettings)}

Output = Literal["overlays", "json", "probabilities"]
# what else can be predicted, each in the folder of this name, and what its record says that it is
OUTPUTS: Mapping[Output, Makes] = {"probabilities": "probabilities", "json": "descriptions", "overlays": "figures"}
_SUFFIXES = {"masks": ".png", "overlays": ".jpg", "json": ".json", "probabilities": ".npz"}
# scale augmentation covers pictures that exceed the sizes of the training pictures by up to this factor
SIZE_TOLERANCE = 1.25
_SMALLEST_SIZE = 16
# bytes of the scores that are computed at a time; most pictures have fewer in all
_BLOCK = 2**27


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """How a segmenter predicts."""

    scales: tuple[float, ...] | None = None
    """scales of the picture over which scores are averaged; none: those of the published test of the segmenter, which are
    only 1 for DeepLab v2 and EMANet, 0.5, 0.75 .. 1.75 for DeepLab v1 and PSPNet"""
    flip: bool | None = None
    """also average over the mirrored picture; none: as in the published test, which is yes for DeepLab v1 and PSPNet"""
    crf: Preset | DenseCRF | None = None
    """dense CRF on the probabilities: the name of a published preset (`deeplab` for DeepLab v2, `icam-final` for DeepLab v1), or CRF settings"""

    size: int | Literal["full"] | None = None
    """longest side of pictures in the network, in pixels: `full` is that of the picture; none: much smaller and much larger pictures than those
    of the training are resized to their sizes, if the weights record them"""

    tags: bool = False
    """predict only classes that a picture is tagged with; for the pictures of a dataset, which have tags. Such scores are not those of a segmenter
    that knows no tags"""

    precision: Precision = "no"
    """precision of the network; `no` is float32"""

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            check_range("test.size", self.size, _SMALLEST_SIZE)
        if self.scales is not None:
            check_range("test.scales", self.scales, SMALLEST_SCALE)


class Prepared(NamedTuple):
    """A picture prepared for the network, on the CPU.

    Attributes:
        views: the normalised picture at each scale, (1, 3, hs, ws).
        size_hw: size of the picture.
        regions: those of the picture, for a segmenter of kind `retrieval`; None if it proposes them itself.
        image: the picture at its size in the network, of which views are made one after the other, if they are computed in tiles; then there
            are no `views`.
    """

    views: list[Tensor]
    size_hw: tuple[int, int]
    regions: Regions | None = None
    image: UInt8[np.ndarray, "h w 3"] | None = None


class Segmenter:
    """A trained segmenter, read from a stage folder or a weights file.

    Args:
        weights: folder or file; files that `wsss segment` wrote name the kind, classes and layers. Published checkpoints are
            recognised by the names of their tensors.
        settings: size, scales, mirroring, CRF.
        device: device of the network; by default the device of this process.

    Attributes:
        kind: kind of the segmenter, for example `deeplab`.
        classes: the class names.
        reading: how its training pictures were read; None for published checkpoints.
        long_sides: the smallest and largest usual longest sides of its training pictures, in pixels; None if they are not known, or if the
            segmenter brings all pictures to the same size.
    """

    def __init__(self, weights: Path, settings: PredictSettings, device: torch.device | None = None) -> None:
        state, metadata, path = trained_weights(weights, *SEGMENTERS)
        kind = (
            metadata["kind"]
            if metadata
            else next((name for name, one in SEGMENTERS.items() if one.signature in state), None)
        )
        if kind is None:
            raise BadInput(
                path,
                f"no segmenter (first tensors: {', '.join(list(state)[:3])})",
                f"one of {', '.join(f'{name} ({one.signature}, ..)' for name, one in SEGMENTERS.items())}",
                "Give a trained segmenter.",
            )
        self.settings, self.kind, self.path, self.device = settings, kind, path, device or launch.device()
        do = "The file was changed after it was written: restore it, or make the segmenter again."
        with reading(path, f"a segmenter of kind `{kind}`, with the settings of its network", do):
            self.trained: TrainedSegmenter = SEGMENTERS[kind].load(state, metadata, path)
        self.trained.network.to(self.device)
        self.classes = self.trained.classes
        self.reading = reading_of(path)
        known = known_long_sides(metadata or {}, path)
        self.long_sides = known if self.trained.fit is None else None
        if self.trained.fit is not None and isinstance(settings.size, int):
            do = "Leave it out."
            raise BadInput("test.size", f"{settings.size}", f"none for {kind}, which resizes all pictures itself", do)
        self.scales = self.trained.scales if settings.scales is None else settings.scales
        self.mirrored = (False, True) if (self.trained.flip if settings.flip is None else settings.flip) else (False,)
        self._tiles = None if self.trained.local is None else Tiles(*self.trained.local)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The picture prepared for the network."""
        height, width = image.shape[:2]
        resized = _resized(image, self.working_size((height, width)))
        if self.in_tiles((height, width)):
            return Prepared([], (height, width), image=resized)
        return Prepared([self.trained.view(resized, scale) for scale in self.scales], (height, width))

    def working_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The height and width in the network, at scale 1, of a picture of this height and width."""
        side, size = max(size_hw), self.settings.size
        if isinstance(size, int):
            target = size
        elif size == "full" or self.long_sides is None:
            target = side
        else:
            low, high = self.long_sides
            usual = low / SIZE_TOLERANCE <= side <= high * SIZE_TOLERANCE
            target = side if usual else min(max(side, low), high)
        height, width = (max(1, round(length * target / side)) for length in size_hw)
        return height, width

    def about_sizes(self, resized: int, total: int) -> str:
        """A sentence on the sizes of pictures in the network."""
        if isinstance(self.settings.size, int):
            return f"the network sees all pictures at {self.settings.size} pixels (longest side)"
        if self.long_sides is None or self.settings.size == "full":
            return "the network sees all pictures at their size"
        low, high = self.long_sides
        sides = str(low) if low == high else f"{low} to {high}"
        trained = f"the network was trained on pictures of {sides} pixels (longest side)"
        done = f"; {resized} of {total} are resized to that (--size full keeps their size)" if resized else ""
        return trained + done

    @torch.inference_mode()
    def probabilities(
        self, prepared: Prepared, label: Bool[np.ndarray, " c"] | None = None
    ) -> Float[np.ndarray, "l h w"]:
        """Class probabilities at the size of the picture, background first, before any CRF.

        Args:
            prepared: the picture.
            label: the classes that it may have; all if None. The others have probability 0.
        """
        whole: np.ndarray | None = None
        for rows, block in self.blocks(prepared, label):
            if block.shape[1:] == prepared.size_hw:
                return block
            if whole is None:
                whole = np.empty((len(block), *prepared.size_hw), block.dtype)
            whole[:, rows] = block
        assert whole is not None
        return whole

    @torch.inference_mode()
    def blocks(
        self, prepared: Prepared, label: Bool[np.ndarray, " c"] | None = None
    ) -> Iterator[tuple[slice, Float[np.ndarray, "l rows w"]]]:
        """As `probabilities`, some rows at a time, so that not all are in memory."""
        absent = None if label is None else torch.from_numpy(np.concatenate([[False], ~label])).to(self.device)
        found = self._coarse(prepared)
        for rows in row_blocks(prepared.size_hw, len(self.classes) + 1):
            some = None if rows == slice(0, prepared.size_hw[0]) else rows
            total: Tensor | None = None
            for coarse, view_hw, mirrored in found:
                logits = self.trained.enlarged(coarse, view_hw, prepared.size_hw, some)
                logits = logits.flip(3) if mirrored else logits
                if absent is not None:
                    logits = logits.masked_fill(absent[:, None, None], -torch.inf)
                scores = logits if self.trained.averaged == "logits" else logits.softmax(1)
                del logits
                total = scores if total is None else total + scores
            assert total is not None
            mean = total[0].div_(len(found))
            yield rows, (mean.softmax(0) if self.trained.averaged == "logits" else mean).cpu().numpy()

    def _coarse(self, prepared: Prepared) -> list[tuple[Tensor, tuple[int, int], bool]]:
        """The coarse logits of each view, the size of the view, and whether it was mirrored."""
        found, parts = [], dict[str, Any]()
        if prepared.image is not None and self._tiles is not None:
            parts = {"compute": partial(self._tiles.within, self._tile_limit(prepared.size_hw))}
        elif prepared.regions is not None:
            assert isinstance(self.trained, TrainedRetrieval)
            parts = {"regions": prepared.regions}
        for number, scale in enumerate(self.scales):
            view = prepared.views[number] if prepared.image is None else self.trained.view(prepared.image, scale)
            view = view.to(self.device)
            for mirrored in self.mirrored:
                with mixed(self.settings.precision, self.device):
                    coarse = self.trained.coarse(view.flip(3) if mirrored else view, **parts)
                found.append((at_least_single(coarse), (view.shape[2], view.shape[3]), mirrored))
        return found

    def check_regions(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise BadInput if regions of pictures of these heights and widths cannot be used."""
        if not isinstance(self.trained, TrainedRetrieval):
            do = "Leave --regions out."
            raise BadInput(self.path, f"regions for a segmenter of kind `{self.kind}`", "one of kind `retrieval`", do)
        if tuple(self.scales) != (1.0,) or self.mirrored != (False,):
            do = "Leave test.scales and test.flip out, or --regions."
            raise BadInput("--regions", "regions with other scales or mirror images", "pictures as they are", do)
        resized = sum(self.working_size(size_hw) != size_hw for size_hw in sizes)
        if resized:
            found = f"regions, and {resized} of {len(sizes)} pictures that would be resized"
            raise BadInput("--regions", found, "pictures at their size", "Add --size full, or leave --regions out.")

    def in_tiles(self, size_hw: tuple[int, int]) -> bool:
        """Whether the network computes a picture of this size tile by tile, since the memory budget does not allow otherwise."""
        if self._tiles is None:
            return False
        needed = self._kept(size_hw) + self._whole(size_hw)
        return needed > memory.budget() and self._tiles.reach.local

    def _seen(self, size_hw: tuple[int, int]) -> int:
        """The pixels of a picture in the network at scale 1, at most."""
        return math.prod(self.working_size(size_hw) if self.trained.fit is None else self.trained.fit)

    def _kept(self, size_hw: tuple[int, int]) -> float:
        """Bytes of a picture, of its copy for the network, and of the coarse logits of all views."""
        seen, views = self._seen(size_hw), len(self.mirrored) * sum(scale**2 for scale in self.scales)
        return 3 * math.prod(size_hw) + 3 * seen + 4 * (len(self.classes) + 1) * seen * views / self.trained.cell**2

    def _whole(self, size_hw: tuple[int, int]) -> float:
        """Bytes of the views of a picture, and of the forward pass of the largest one."""
        seen, largest = self._seen(size_hw), max(self.scales) ** 2
        views = 12 * seen * sum(scale**2 for scale in self.scales)
        if self.trained.window is not None:
            return views + ROUGH * self.trained.window**2
        if self._tiles is None:
            return views + ROUGH * seen * largest * enlarged_by(self.trained.network) ** 2
        return views + self._tiles.whole(seen * largest, memory.budget() - self._kept(size_hw) - views)

    def _one_view(self, size_hw: tuple[int, int]) -> float:
        """Bytes of the largest view, and of the picture at scale 1 of which it is made."""
        return (
            12
            * self._seen(size_hw)
            * (max(self.scales) ** 2 + (tuple(self.scales) != (1.0,)) + (True in self.mirrored))
        )

    def _tile_limit(self, size_hw: tuple[int, int]) -> float:
        """The bytes that a tile may take: what is left, and at most half of the budget."""
        left = memory.budget() - self._kept(size_hw) - self._one_view(size_hw)
        return max(0, min(left, memory.budget() / 2))

    def bytes_for(self, size_hw: tuple[int, int], outputs: Collection[str] = ("masks",)) -> float:
        """About the bytes that a picture of this height and width takes, from when it is prepared until these outputs are written."""
        pixels, labels, kept = math.prod(size_hw), len(self.classes) + 1, self._kept(size_hw)
        if self.in_tiles(size_hw):
            assert self._tiles is not None
            network = self._one_view(size_hw) + self._tiles.of_tile(self._tiles.core(self._tile_limit(size_hw)))
        else:
            network = self._whole(size_hw)
        block = min(4 * labels * pixels, _BLOCK) * (4 + max(self.scales) ** 2)
        # masks, confidences, and probabilities in half precision
        made = pixels * (1 + 2 * ("json" in outputs) + 2 * labels * ("probabilities" in outputs))
        written = 3 * pixels + made + 10 * pixels * ("json" in outputs)
        if self.settings.crf is None:
            return max(kept + network, kept + block + made, written)
        unary = 4 * labels * pixels
        return max(
            kept + network,
            kept + block + unary,
            3 * pixels + unary + crf_bytes(pixels, [labels]),
            written + unary + block,
        )

    def refined(
        self, image: UInt8[np.ndarray, "h w 3"], probabilities: Float[np.ndarray, "l h w"]
    ) -> Float[np.ndarray, "l h w"]:
        """The probabilities after the CRF, if the settings have one."""
        return probabilities if self.settings.crf is None else self.sharpened(image, unary_from_scores(probabilities))

    def sharpened(
        self, image: UInt8[np.ndarray, "h w 3"], unary: Float[np.ndarray, "l h w"]
    ) -> Float[np.ndarray, "l h w"]:
        """The probabilities after the CRF, from energies, over which they are written."""
        crf = self.settings.crf
        assert crf is not None
        kernels = PRESETS[crf] if isinstance(crf, str) else crf
        return dense_crf(self.trained.crf_image(image), unary, kernels, threads=1, overwrite=True)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Labels of one RGB picture: 0 for background, otherwise class + 1."""
        return most_probable(self.refined(image, self.probabilities(self.prepare(image))))


def _resized(image: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    if image.shape[:2] == size_hw:
        return image
    shrinks = max(size_hw) < max(image.shape[:2])
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def row_blocks(size_hw: tuple[int, int], labels: int) -> Iterator[slice]:
    """The rows of a picture whose scores are computed at a time, all of them unless it is large."""
    height, width = size_hw
    count = max(1, _BLOCK // (4 * labels * width))
    return (slice(top, min(top + count, height)) for top in range(0, height, count))


def most_probable(probabilities: Float[np.ndarray, "l h w"]) -> UInt8[np.ndarray, "h w"]:
    """The most probable label of each pixel."""
    return highest_label(probabilities)


def pictures(
    path: Path, *, weights: Path, request: ReadingRequest = DEFAULT_REQUEST, allow_outside: bool = False
) -> tuple[Images, list[str]]:
    """A picture, or all pictures of a folder, read like the training pictures of a segmenter, with notes for the user.

    Published checkpoints do not say how those were read; then it is decided from these pictures, as for a dataset.

    Args:
        path: the picture or the folder.
        weights: folder of a trained segmenter, or its weights file.
        request: the user's choice instead. With a value range, pictures of any kind are accepted.
        allow_outside: links in the folder may lead out of it.

    Raises:
        BadInput: there are no pictures; a link leads to a file outside the folder, or two to the same file; or the pictures are not of
            the same kind as the training pictures.
    """
    images = open_pictures(path)
    if path.is_dir():
        check_files(Dataset("pictures", path, {"pictures": images}, "pictures"), allow_outside=allow_outside)
    reading, notes = choose_reading(images.paths, path, request, reading_of(weights))
    ignored = notes_on_unreadable(path) if path.is_dir() else []
    return dataclasses.replace(images, reading=reading), notes + ignored


def predict(
    settings: PredictSettings,
    images: Images,
    *,
    weights: Path,
    out: Path,
    also: Collection[Output] = (),
    regions: Path | None = None,
) -> Path:
    """Write a predicted mask `NAME.png` for every picture, and, if wanted, more about it; docs/predict.md describes the files.

    Each of the further outputs is a stage of its own, in a folder inside `out`, so that it can be added later. Pictures all of whose
    files exist are skipped, and those that only lack files that follow from the existing ones are not predicted again.

    Args:
        settings: size, scales, mirroring, CRF.
        images: any pictures, read like the training pictures (see `pictures`); their tags are used only if `settings.tags` says so.
        weights: folder of a trained segmenter, or its weights file.
        out: the stage's folder.
        also: what to write besides masks.
        regions: folder of the pictures' regions, for a segmenter of kind `retrieval`, which proposes them otherwise.

    Raises:
        BadInput: the segmenter was trained on pictures with more than 8 bits, and these were opened as 8-bit pictures; regions are given
            that it cannot use; or as a stage raises it.
    """
    out, inputs = Path(out), {"settings": settings, "images": images, "weights": weights}
    if regions is not None:
        inputs["regions"] = regions
    with contextlib.ExitStack() as stages:
        info = StageInfo("predict", "predictions", "segmenter", ("predict", "predictions"))
        opened: dict[str, OpenStage] = {"masks": stages.enter_context(open_stage(info, inputs, out))}
        edited = launch.decided_by_first(lambda: edited_files(out)) if opened["masks"].finished else {}
        for kind, makes in OUTPUTS.items():
            if kind in also:
                info = StageInfo(kind, makes, f"{kind} of the segmenter", (kind, makes))
                # masks that were corrected by hand are described and drawn as they are
                opened[kind] = stages.enter_context(open_stage(info, {**inputs, "edited": edited}, out / kind))
        wanted = [name for name, one in opened.items() if not one.finished]
        if wanted:
            segmenter = Segmenter(weights, settings)
            for_inference(segmenter.trained.network)
            result = _Predicting(segmenter, images, out, wanted, regions).run()
            for name in wanted:
                opened[name].result = result
    return out


def _tags_of(images: Images, segmenter: Segmenter) -> Bool[np.ndarray, "n c"]:
    """The tags of the pictures, as classes of the segmenter.

    Raises:
        BadInput: the pictures have no tags, or a tag is no class of the segmenter.
    """
    unknown = [name for name in images.class_names if name not in segmenter.classes]
    if unknown or not images.labels.any():
        found = f"pictures with the tag `{unknown[0]}`" if unknown else "pictures without tags"
        expected = f"tags that are classes of the segmenter ({', '.join(segmenter.classes[:5])}, ..)"
        raise BadInput(images.title, found, expected, "Set test.tags to false, or predict the pictures of a dataset.")
    labels = np.zeros((len(images), len(segmenter.classes)), bool)
    labels[:, [segmenter.classes.index(name) for name in images.class_names]] = images.labels
    return labels


class _Missing(NamedTuple):
    """What is known about a picture, and what is missing.

    Attributes:
        image: RGB.
        files: the files to write, by the name of the output.
        mask: the mask in the existing file or of the network, None if there is none yet.
        prepared: the input of the network; None if the picture does not have to be predicted.
        confidences: the probabilities of the labels of the mask, None if they are not needed or not known yet.
        probabilities: of all labels, None if they are not needed or not known yet.
        unary: energies for the CRF, None if there is none.
    """

    image: UInt8[np.ndarray, "h w 3"]
    files: Mapping[str, Path]
    mask: UInt8[np.ndarray, "h w"] | None
    prepared: Prepared | None
    confidences: Float16[np.ndarray, "h w"] | None = None
    probabilities: Float16[np.ndarray, "l h w"] | None = None
    unary: Float32[np.ndarray, "l h w"] | None = None

    def scored(self, blocks: Iterable[tuple[slice, Float[np.ndarray, "l rows w"]]], labels: int) -> "_Missing":
        """What the files need of the probabilities, in half precision: descriptions are the same, whether they come from the network or a file."""
        size_hw = self.image.shape[:2]
        mask = np.empty(size_hw, np.uint8) if self.mask is None else self.mask
        confidences = np.empty(size_hw, np.float16) if "json" in self.files else None
        probabilities = np.empty((labels, *size_hw), np.float16) if "probabilities" in self.files else None
        for rows, block in blocks:
            if self.mask is None:
                mask[rows] = most_probable(block)
            if confidences is not None:
                confidences[rows] = confidences_of(mask[rows], block)
            if probabilities is not None:
                probabilities[:, rows] = block
        return self._replace(mask=mask, confidences=confidences, probabilities=probabilities, prepared=None, unary=None)


class _Predicting:
    """One pass over pictures that writes all outputs which are missing.

    Args:
        segmenter: the segmenter.
        images: the pictures.
        out: folder of the masks.
        wanted: names of the outputs that are unfinished.
        regions: folder of the pictures' regions, None if the segmenter needs none or proposes them.
    """

    def __init__(
        self, segmenter: Segmenter, images: Images, out: Path, wanted: Sequence[str], regions: Path | None
    ) -> None:
        if images.reading == DEFAULT_READING and segmenter.reading not in (None, DEFAULT_READING):
            raise BadInput(
                images.title,
                f"pictures opened with {images.reading}",
                f"{segmenter.reading}, as for the training of {segmenter.path}",
                "Open them with `wsss.stages.predict.pictures`.",
            )
        self.segmenter, self.images, self.out, self.wanted, self.regions = segmenter, images, out, wanted, regions
        self.labels = _tags_of(images, segmenter) if segmenter.settings.tags else None

    def run(self) -> dict[str, Any]:
        """Write the files; returns the result for the records."""
        sizes = list(in_threads(self.images.size_hw, range(len(self.images))))
        if self.regions is not None:
            self.segmenter.check_regions(sizes)
        resized = sum(self.segmenter.working_size(size_hw) != size_hw for size_hw in sizes)
        in_tiles = sum(map(self.segmenter.in_tiles, sizes))
        if launch.is_first():
            log.info("%s: %s", self.out, self.segmenter.about_sizes(resized, len(sizes)))
            if in_tiles:
                log.info(
                    "%s: %d of %d pictures are computed in tiles, to keep to --memory", self.out, in_tiles, len(sizes)
                )
        for_each_picture(
            self.images,
            self.out,
            ".png",
            self._load,
            self._compute,
            self._write,
            title=f"predict {self.out.name}",
            is_done=lambda index: not self._missing(index),
            needs=within_budget(self.images, self._bytes_for, self._help()),
        )
        known = self.segmenter.long_sides
        return {
            "images": len(self.images),
            "classes": list(self.segmenter.classes),
            "trained_long_sides": None if known is None else list(known),
            "resized": resized,
            **({"in tiles": in_tiles} if in_tiles else {}),
        }

    def _help(self) -> str:
        """What to do about a picture that takes too much memory."""
        less = ["give a smaller --size (--test.size of a run)"] if self.segmenter.trained.fit is None else []
        less += ["leave out the CRF"] if self.segmenter.settings.crf is not None else []
        less += ["leave out --probabilities"] if "probabilities" in self.wanted else []
        return f", {', '.join([*less, ''])}or shrink the picture"

    def _path(self, name: str, index: int) -> Path:
        folder = self.out if name == "masks" else self.out / name
        return folder / f"{self.images.names[index]}{_SUFFIXES[name]}"

    def _missing(self, index: int) -> dict[str, Path]:
        return {name: path for name in self.wanted if not (path := self._path(name, index)).exists()}

    def _again(self, index: int, files: Mapping[str, Path]) -> bool:
        """Whether the network has to predict a picture for these missing files."""
        stored = "probabilities" not in files and self._path("probabilities", index).exists()
        return "masks" in files or "probabilities" in files or ("json" in files and not stored)

    def _bytes_for(self, index: int, size_hw: tuple[int, int]) -> float:
        files, pixels = self._missing(index), math.prod(size_hw)
        if self._again(index, files):
            return self.segmenter.bytes_for(size_hw, files)
        # picture, mask and description; the probabilities of a file
        return pixels * (16 + (12 + 3 * (len(self.segmenter.classes) + 1)) * ("json" in files))

    def _load(self, index: int) -> _Missing:
        image, files = self.images.read(index), self._missing(index)
        size_hw = (image.shape[0], image.shape[1])
        mask = None if "masks" in files else self._read_mask(index, size_hw)
        if self._again(index, files):
            return _Missing(image, files, mask, self._prepare(image, index))
        confidences = None
        if "json" in files:
            assert mask is not None
            labels = len(self.segmenter.classes) + 1
            stored = read_probabilities(self._path("probabilities", index), labels, size_hw)
            confidences = confidences_of(mask, stored)
        return _Missing(image, files, mask, None, confidences)

    def _prepare(self, image: UInt8[np.ndarray, "h w 3"], index: int) -> Prepared:
        prepared = self.segmenter.prepare(image)
        if self.regions is None:
            return prepared
        return prepared._replace(regions=read_regions_of(self.images, self.regions, index, prepared.size_hw))

    def _read_mask(self, index: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        path = self._path("masks", index)
        mask = read_mask(path)
        if mask.shape != size_hw:
            found, expected = (
                f"a mask of {mask.shape[0]}x{mask.shape[1]}",
                f"{size_hw[0]}x{size_hw[1]} like its picture",
            )
            raise BadInput(path, found, expected, "Restore it, or remove it: it will be predicted again.")
        check_labels(mask, len(self.segmenter.classes) + 1, str(path), self.segmenter.classes)
        return mask

    def _compute(self, index: int, one: _Missing) -> _Missing:
        if one.prepared is None:
            return one
        labels = len(self.segmenter.classes) + 1
        blocks = self.segmenter.blocks(one.prepared, None if self.labels is None else self.labels[index])
        if self.segmenter.settings.crf is None:
            return one.scored(blocks, labels)
        unary = np.empty((labels, *one.prepared.size_hw), np.float32)
        for rows, block in blocks:
            unary[:, rows] = unary_from_scores(block)
        return one._replace(unary=unary, prepared=None)

    def _write(self, path: Path, one: _Missing) -> None:
        classes = self.segmenter.classes
        if one.unary is not None:
            found = self.segmenter.sharpened(one.image, one.unary)
            blocks = ((rows, found[:, rows]) for rows in row_blocks(one.image.shape[:2], len(found)))
            one = one.scored(blocks, len(found))
        assert one.mask is not None
        name = path.relative_to(self.out).with_suffix("").as_posix()
        if one.probabilities is not None:
            write_probabilities(one.files["probabilities"], one.probabilities, classes)
        if one.confidences is not None:
            write_description(one.files["json"], name, one.mask, one.confidences, classes)
        if "overlays" in one.files:
            write_picture(one.files["overlays"], overlay(one.image, one.mask, classes))
        if "masks" in one.files:
            write_mask(path, one.mask)
