"""Write class activation maps: one file per picture, with a map for each class in its tags."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import nn

from wsss.arrays import Bool, Float, Int, UInt8
from wsss.data.files import write_cams
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput
from wsss.networks.inference import for_inference
from wsss.ops.regions import Regions
from wsss.regions.files import read_regions_of
from wsss.run import stage
from wsss.stages.each import for_each_picture, read_prepared, within_budget
from wsss.weights import reading_of


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

    Pictures whose file exists are skipped, so a killed stage continues where it stopped.

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

    def compute(index: int, loaded: tuple[Any, tuple[int, int]]) -> Cams:
        prepared, size_hw = loaded
        return localizer.cams(prepared, size_hw, images.labels[index])

    def write(path: Path, cams: Cams) -> None:
        write_cams(path, *cams)

    def load(index: int) -> tuple[Any, tuple[int, int]]:
        prepare = localizer.prepare
        if isinstance(localizer, WithinRegions):
            regions = read_regions_of(images, inputs["regions"], index, images.size_hw(index))
            prepare = partial(localizer.prepare_within, regions=regions)
        return read_prepared(prepare, images, index)

    facts = getattr(localizer, "facts", {})
    if not isinstance(localizer, Bounded):
        for_each_picture(images, out, ".npz", load, compute, write, title=f"localize {out.name}")
        return {"images": len(images), **facts}
    needs = within_budget(
        images,
        lambda index, size_hw: localizer.bytes_for(size_hw, len(images.classes(index))),
        (", leave out the largest of inference.scales" if hasattr(settings, "scales") else "")
        + ", or shrink the picture",
    )
    for_each_picture(images, out, ".npz", load, compute, write, title=f"localize {out.name}", needs=needs)
    in_tiles = 0
    if isinstance(localizer, Tiled):
        in_tiles = sum(localizer.in_tiles(images.size_hw(index)) for index in range(len(images)))
    return {"images": len(images), **facts, **({"in tiles": in_tiles} if in_tiles else {})}
