"""Make activation maps: one file a picture, of the classes that it is tagged with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from wsss.data.files import write_cams
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput
from wsss.run import stage
from wsss.stages.each import for_each_picture, read_prepared
from wsss.weights import reading_of


class Cams(NamedTuple):
    """Activation maps of one picture, in [0, 1], float32.

    Attributes:
        classes: 0-based classes of the maps, ascending.
        maps: at the picture's size.
        maps_stride4: at a quarter of it, None where a method has no such maps.
    """

    classes: Int[np.ndarray, " k"]
    maps: Float[np.ndarray, "k h w"]
    maps_stride4: Float[np.ndarray, "k hs ws"] | None


class Localizer(Protocol):
    """A method that gives maps; `prepare` runs ahead in threads, `cams` where the network is."""

    def prepare(self, image: Any) -> Any:
        """What of the work needs no network, for one picture (uint8 RGB)."""

    def cams(self, prepared: Any, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """The maps of the classes in `label`."""


class LocalizerSettings(Protocol):
    """Settings that know how to make their localizer."""

    @property
    def title(self) -> str:
        """The name of the method, in reports and records."""

    @property
    def localizer(self) -> Callable[..., Localizer]:
        """Loads the method on the device, from pictures and named inputs."""


def _check_reading(images: Images, weights: Path) -> None:
    """Raise BadInput if weights were trained on pictures of more than 8 bits whose values or bands were read in another way."""
    trained = reading_of(weights)
    if trained is None or trained == DEFAULT_READING:
        return
    if (trained.value_range, trained.bands) != (images.reading.value_range, images.reading.bands):
        raise BadInput(
            images.title,
            f"pictures read with {images.reading}",
            f"{trained}, like those that {weights} was trained on",
            f"Give {trained.flags()} if these pictures are of the same kind, or train on pictures of this kind.",
        )


@stage(kind="localize", makes="maps", title=None)
def localize(settings: LocalizerSettings, images: Images, *, out: Path, **inputs: Path) -> dict[str, Any]:
    """Write the activation maps of every picture as `NAME.npz` (see `wsss.data.files.write_cams`).

    Pictures whose file is there are left alone, so a killed stage goes on.

    Args:
        settings: of the method.
        images: the pictures and their labels.
        out: the stage's folder.
        inputs: earlier stages or files that the method needs, by name (`weights`, ...).
    """
    if "weights" in inputs:
        _check_reading(images, inputs["weights"])
    localizer = settings.localizer(images, **inputs)

    def compute(index: int, loaded: tuple[Any, tuple[int, int]]) -> Cams:
        prepared, size_hw = loaded
        return localizer.cams(prepared, size_hw, images.labels[index])

    def write(path: Path, cams: Cams) -> None:
        write_cams(path, *cams)

    load = partial(read_prepared, localizer.prepare, images)
    for_each_picture(images, out, ".npz", load, compute, write, title=f"localize {out.name}")
    return {"images": len(images)}
