"""Write class activation maps: one file per picture, with a map for each class in its tags."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from wsss import launch
from wsss.arrays import Bool, Float, Int, UInt8
from wsss.data.files import write_cams
from wsss.data.grids import Grids
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput
from wsss.networks.inference import for_inference
from wsss.ops.regions import Regions
from wsss.regions.files import read_regions_of
from wsss.run import stage
from wsss.stages.each import for_each_batch, read_prepared, within_budget
from wsss.stream import in_threads
from wsss.weights import reading_of

# pictures that a network computes together if the settings do not say how many, and the most pixels that they have together: on a CPU, larger
# ones are not faster in a batch (benchmarks/localize.py --together), on a GPU, they fill its memory
_TOGETHER, _PIXELS_ON_CPU, _PIXELS_ON_GPU = 8, 2**16, 2**22


class Cams(NamedTuple):
    """Class activation maps of one picture, float32 in [0, 1].

    Attributes:
        classes: 0-based classes of the maps, in ascending order.
        maps: at the size of the picture.
        maps_stride4: at a quarter of that size, None if a method has no such maps.
    """

    classes: Int[np.ndarray, " k"]
    maps: Float[np.ndarray, "k h w"]
    maps_stride4: Float[np.ndarray, "k hs ws"] | None


class SummedCams(Cams):
    """Maps with the grids that they were enlarged from, with which their file is smaller."""

    grids: Grids

    @classmethod
    def of(cls, cams: Cams, grids: Grids) -> "SummedCams":
        """Add the grids to maps."""
        made = cls(*cams)
        made.grids = grids
        return made


class Localizer(Protocol):
    """A method that makes maps; `prepare` runs ahead in threads, `cams` on the device of the network.

    It may have `facts`, a dictionary of what the record should say besides the settings.
    """

    def prepare(self, image: Any) -> Any:
        """The part of the work that needs no network, for one picture (uint8 RGB)."""

    def cams(self, prepared: Any, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """The maps of the classes in `label`."""


@runtime_checkable
class Describer(Protocol):
    """A localizer that can also describe a picture, so that its tags can be checked; see `wsss.health.tags`."""

    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """A vector, on any scale, that is similar for pictures with the same classes. It must not depend on the picture's tags."""


@runtime_checkable
class WithNetwork(Protocol):
    """A localizer with a network of its own, which is made faster before the first picture; see `wsss.networks.inference`."""

    network: nn.Module


@runtime_checkable
class Bounded(Protocol):
    """A localizer that knows how much memory it takes."""

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """About the bytes that a picture takes, from when it is prepared until its maps of this number of classes are written."""


@runtime_checkable
class Together(Localizer, Bounded, Protocol):
    """A localizer that can compute the maps of several pictures of equal size in one pass."""

    def together(self, size_hw: tuple[int, int]) -> int:
        """How many pictures of this height and width, whatever the memory budget; see `number_together`."""

    def cams_of(self, prepared: Sequence[Any], size_hw: tuple[int, int], labels: Bool[np.ndarray, "n c"]) -> list[Cams]:
        """As `cams`, for several pictures and their tags."""


@runtime_checkable
class Tiled(Bounded, Protocol):
    """A localizer that can compute the maps of large pictures tile by tile."""

    def in_tiles(self, size_hw: tuple[int, int]) -> bool:
        """Whether it does so for a picture of this height and width."""


@runtime_checkable
class WithinRegions(Localizer, Protocol):
    """A localizer that makes its maps within regions of the picture; `prepare` is for a picture without any."""

    def prepare_within(self, image: UInt8[np.ndarray, "h w 3"], regions: Regions) -> Any:
        """As `prepare`, for one picture and its regions."""


class LocalizerSettings(Protocol):
    """Settings that can build their localizer."""

    @property
    def title(self) -> str:
        """Name of the method, for reports and records."""

    @property
    def localizer(self) -> Callable[..., Localizer]:
        """Builds the localizer on the device, from pictures and named inputs."""


def number_together(asked: int, size_hw: tuple[int, int], device: torch.device) -> int:
    """How many pictures of this height and width a network computes together: as many as `asked`; 0: as many as make it faster."""
    most = _PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_GPU
    return asked or max(1, min(_TOGETHER, most // (size_hw[0] * size_hw[1])))


def _batches(localizer: Localizer, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The indices of pictures of equal size, which are computed together.

    They depend on nothing else than the pictures and the kind of device, so that all processes, and a command that goes on, divide the
    pictures in the same way.
    """
    if not isinstance(localizer, Together):
        return [[index] for index in range(len(sizes))]
    batches: list[list[int]] = []
    # the last of each size
    last: dict[tuple[int, int], list[int]] = {}
    for index, size_hw in enumerate(sizes):
        batch = last.get(size_hw)
        if batch is None or len(batch) >= localizer.together(size_hw):
            batch = last[size_hw] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _check_reading(images: Images, weights: Path) -> None:
    """Raise BadInput if the weights were trained on pictures with more than 8 bits that were read with another value range or other bands."""
    trained = reading_of(weights)
    if trained is None or trained == DEFAULT_READING:
        return
    if (trained.value_range, trained.bands) != (images.reading.value_range, images.reading.bands):
        raise BadInput(
            images.title,
            f"pictures read with {images.reading}",
            f"{trained}, as for the training of {weights}",
            f"Give {trained.flags()} if these pictures are of the same kind, or train on pictures of this kind.",
        )


@stage(kind="localize", makes="maps", title=None)
def localize(settings: LocalizerSettings, images: Images, *, out: Path, **inputs: Path) -> dict[str, Any]:
    """Write the class activation maps of every picture as `NAME.npz` (see `wsss.data.files.write_cams`).

    Pictures whose file exists are skipped, so a killed stage continues where it stopped. Some methods compute several pictures of equal size
    together (`inference.batch`).

    Args:
        settings: settings of the method.
        images: the pictures and their tags.
        out: the stage's folder.
        inputs: earlier stages or files that the method needs, by name (`weights`, `regions`).
    """
    if "weights" in inputs:
        _check_reading(images, inputs["weights"])
    localizer = settings.localizer(images, **inputs)
    if isinstance(localizer, WithNetwork):
        for_inference(localizer.network)

    def compute(batch: Sequence[int], loaded: Sequence[tuple[Any, tuple[int, int]]]) -> list[Cams]:
        prepared, size_hw = [one for one, _ in loaded], loaded[0][1]
        if isinstance(localizer, Together):
            return localizer.cams_of(prepared, size_hw, images.labels[list(batch)])
        return [localizer.cams(prepared[0], size_hw, images.labels[batch[0]])]

    def write(path: Path, cams: Cams) -> None:
        write_cams(path, *cams, grids=cams.grids if isinstance(cams, SummedCams) else None)

    def load(index: int) -> tuple[Any, tuple[int, int]]:
        prepare = localizer.prepare
        if isinstance(localizer, WithinRegions):
            regions = read_regions_of(images, inputs["regions"], index, images.size_hw(index))
            prepare = partial(localizer.prepare_within, regions=regions)
        return read_prepared(prepare, images, index)

    sizes = list(in_threads(images.size_hw, range(len(images)), threads=launch.threads(), batch=64))
    needs, facts = None, {"images": len(images), **getattr(localizer, "facts", {})}
    if isinstance(localizer, Bounded):
        needs = within_budget(
            images,
            lambda index, size_hw: localizer.bytes_for(size_hw, len(images.classes(index))),
            (", leave out the largest of inference.scales" if hasattr(settings, "scales") else "")
            + ", or shrink the picture",
            sizes,
        )
    batches = _batches(localizer, sizes)
    for_each_batch(
        images, out, ".npz", load, compute, write, batches=batches, title=f"localize {out.name}", needs=needs
    )
    tiled = {size_hw for size_hw in set(sizes) if isinstance(localizer, Tiled) and localizer.in_tiles(size_hw)}
    if (largest := max((len(batch) for batch in batches if sizes[batch[0]] not in tiled), default=1)) > 1:
        facts["batch"] = largest
    if tiled:
        facts["in tiles"] = sum(size_hw in tiled for size_hw in sizes)
    return facts
