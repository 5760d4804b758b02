"""Run a trained segmenter on pictures."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, UInt8
from wsss.data.augment import SMALLEST_SCALE
from wsss.data.file_checks import check_files
from wsss.data.files import read_mask, write_mask, write_picture
from wsss.data.images import Dataset, Images, check_labels
from wsss.data.lists import notes_on_unreadable
from wsss.data.open import open_pictures
from wsss.data.predictions import read_probabilities, write_description, write_probabilities
from wsss.data.samples import DEFAULT_READING
from wsss.data.value_range import DEFAULT_REQUEST, ReadingRequest, choose_reading
from wsss.errors import BadInput, check_range, reading
from wsss.networks.inference import for_inference
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
# bytes of a network's activations for each pixel that it sees, above those of common segmenters
_ACTIVATIONS = 600


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
    """

    views: list[Tensor]
    size_hw: tuple[int, int]
    regions: Regions | None = None


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

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The picture prepared for the network."""
        height, width = image.shape[:2]
        resized = _resized(image, self.working_size((height, width)))
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
        absent = None if label is None else torch.from_numpy(np.concatenate([[False], ~label])).to(self.device)
        total: Tensor | None = None
        for view in prepared.views:
            view = view.to(self.device)
            for mirrored in self.mirrored:
                with mixed(self.settings.precision, self.device):
                    logits = self._logits(view.flip(3) if mirrored else view, prepared)
                logits = at_least_single(logits.flip(3) if mirrored else logits)
                if absent is not None:
                    logits = logits.masked_fill(absent[:, None, None], -torch.inf)
                scores = logits if self.trained.averaged == "logits" else logits.softmax(1)
                del logits
                total = scores if total is None else total.add_(scores)
        assert total is not None
        mean = total[0].div_(len(prepared.views) * len(self.mirrored))
        return (mean.softmax(0) if self.trained.averaged == "logits" else mean).cpu().numpy()

    def _logits(self, view: Tensor, prepared: Prepared) -> Tensor:
        if prepared.regions is None:
            return self.trained.logits(view, prepared.size_hw)
        assert isinstance(self.trained, TrainedRetrieval)
        return self.trained.logits(view, prepared.size_hw, prepared.regions)

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

    def bytes_for(self, size_hw: tuple[int, int]) -> float:
        """About the bytes that a picture of this height and width takes, from when it is prepared until its files are written."""
        pixels, seen = math.prod(size_hw), math.prod(self.working_size(size_hw))
        views = seen * (12 * sum(scale**2 for scale in self.scales) + _ACTIVATIONS * max(self.scales) ** 2)
        # the sum over views in float32 and the scores of one view; half precision for files
        labels = len(self.classes) + 1
        scores = pixels * (3 + 10 * labels)
        if self.settings.crf is None:
            return views + scores
        return max(views + scores, scores + 4 * labels * pixels + crf_bytes(pixels, [labels]))

    def refined(
        self, image: UInt8[np.ndarray, "h w 3"], probabilities: Float[np.ndarray, "l h w"]
    ) -> Float[np.ndarray, "l h w"]:
        """The probabilities after the CRF, if the settings have one."""
        crf = self.settings.crf
        if crf is None:
            return probabilities
        kernels = PRESETS[crf] if isinstance(crf, str) else crf
        return dense_crf(
            self.trained.crf_image(image), unary_from_scores(probabilities), kernels, threads=1, overwrite=True
        )

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Labels of one RGB picture: 0 for background, otherwise class + 1."""
        return most_probable(self.refined(image, self.probabilities(self.prepare(image))))


def _resized(image: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    if image.shape[:2] == size_hw:
        return image
    shrinks = max(size_hw) < max(image.shape[:2])
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


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
        mask: the mask in the existing file, None if there is none.
        prepared: the input of the network; None if the picture does not have to be predicted.
        probabilities: those in the existing file, None if there are none or they are not needed.
    """

    image: UInt8[np.ndarray, "h w 3"]
    files: Mapping[str, Path]
    mask: UInt8[np.ndarray, "h w"] | None
    prepared: Prepared | None
    probabilities: Float[np.ndarray, "l h w"] | None


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
        if launch.is_first():
            log.info("%s: %s", self.out, self.segmenter.about_sizes(resized, len(sizes)))
        for_each_picture(
            self.images,
            self.out,
            ".png",
            self._load,
            self._compute,
            self._write,
            title=f"predict {self.out.name}",
            is_done=lambda index: not self._missing(index),
            needs=within_budget(
                self.images,
                lambda _, size_hw: self.segmenter.bytes_for(size_hw),
                ", give a smaller --size (--test.size of a run), or shrink the picture",
            ),
        )
        known = self.segmenter.long_sides
        return {
            "images": len(self.images),
            "classes": list(self.segmenter.classes),
            "trained_long_sides": None if known is None else list(known),
            "resized": resized,
        }

    def _path(self, name: str, index: int) -> Path:
        folder = self.out if name == "masks" else self.out / name
        return folder / f"{self.images.names[index]}{_SUFFIXES[name]}"

    def _missing(self, index: int) -> dict[str, Path]:
        return {name: path for name in self.wanted if not (path := self._path(name, index)).exists()}

    def _load(self, index: int) -> _Missing:
        image, files = self.images.read(index), self._missing(index)
        size_hw = (image.shape[0], image.shape[1])
        mask = None if "masks" in files else self._read_mask(index, size_hw)
        stored = self._path("probabilities", index)
        needs_scores = "json" in files or "probabilities" in files
        has_scores = "probabilities" not in files and stored.exists()
        probabilities = None
        if needs_scores and has_scores and mask is not None:
            probabilities = read_probabilities(stored, len(self.segmenter.classes) + 1, size_hw)
        again = mask is None or (needs_scores and probabilities is None)
        return _Missing(image, files, mask, self._prepare(image, index) if again else None, probabilities)

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
        label = None if self.labels is None else self.labels[index]
        return one._replace(probabilities=self.segmenter.probabilities(one.prepared, label), prepared=None)

    def _write(self, path: Path, one: _Missing) -> None:
        mask, half, classes = one.mask, None, self.segmenter.classes
        if one.probabilities is not None:
            is_stored = one.probabilities.dtype == np.float16
            scores = one.probabilities if is_stored else self.segmenter.refined(one.image, one.probabilities)
            mask = most_probable(scores) if mask is None else mask
            # descriptions are the same, whether the probabilities come from the network or from a file
            half = scores.astype(np.float16)
        assert mask is not None
        name = path.relative_to(self.out).with_suffix("").as_posix()
        if "probabilities" in one.files and half is not None:
            write_probabilities(one.files["probabilities"], half, classes)
        if "json" in one.files and half is not None:
            write_description(one.files["json"], name, mask, half, classes)
        if "overlays" in one.files:
            write_picture(one.files["overlays"], overlay(one.image, mask, classes))
        if "masks" in one.files:
            write_mask(path, mask)
