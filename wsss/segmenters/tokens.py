"""Cached tokens: the feature maps that a frozen network gives for fixed views of pictures, in half precision, in a folder of shards.

`tokens.json` names the network with the versions of the libraries that computed it, the views, and the pictures with their digests, sizes and
shards. `tokens-00000.safetensors`, .. hold a tensor (channels, rows, columns) for each picture, view and feature map.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors
import torch
from torch import Tensor

from wsss.arrays import Float, UInt8
from wsss.data.augment import SMALLEST_SCALE
from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput, check_range, reading
from wsss.foundations import FeatureSettings, check_identity
from wsss.run import unrecorded
from wsss.segmenters.trained import rescaled
from wsss.storage import read_json

INDEX = "tokens.json"
# opened at the same time
_MOST_OPEN = 256
_AGAIN = "Remove the folder, and run the command again."


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """The views of a picture whose tokens are cached."""

    scales: tuple[float, ...] = (1.0,)
    """scales of the picture"""
    flip: bool = True
    """also the mirrored picture at each scale"""
    most_gb: float = unrecorded(50.0)
    """a larger cache is not written; in GB"""

    def __post_init__(self) -> None:
        check_range("segmenter.views.scales", self.scales, SMALLEST_SCALE)
        check_range("segmenter.views.most_gb", self.most_gb, 0)


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """Tokens of a frozen network."""

    title: ClassVar[str] = "frozen tokens"

    features: FeatureSettings
    views: ViewSettings


@dataclasses.dataclass(frozen=True)
class View:
    """A view of a picture.

    Attributes:
        scale: of the picture.
        mirrored: whether it is the mirror image.
    """

    scale: float
    mirrored: bool

    def size_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The size of the view of a picture of this size."""
        if self.scale == 1:
            return size_hw
        height, width = (max(1, round(side * self.scale)) for side in size_hw)
        return height, width

    def planes(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 hs ws"]:
        """The view, with values from 0 to 255."""
        planes = rescaled(torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None], self.scale, False)
        return planes.flip(3) if self.mirrored else planes

    def labels(
        self, mask: UInt8[np.ndarray, "h w"], grid_hw: tuple[int, int], cell: float
    ) -> UInt8[np.ndarray, "rows columns"]:
        """The labels at the centres of the cells of a grid on the view, 255 outside the picture.

        Args:
            mask: of the picture, not of the view.
            grid_hw: rows and columns.
            cell: side of a cell, in pixels of the view.
        """
        found = np.full(grid_hw, IGNORE, np.uint8)
        rows, columns = (((np.arange(count) + 0.5) * cell) for count in grid_hw)
        height, width = self.size_hw((mask.shape[0], mask.shape[1]))
        inside = (rows < height).sum(), (columns < width).sum()
        at = [
            (positions[:count] * (side / seen)).astype(np.int64).clip(0, side - 1)
            for positions, count, side, seen in zip((rows, columns), inside, mask.shape, (height, width), strict=True)
        ]
        across = mask.shape[1] - 1 - at[1] if self.mirrored else at[1]
        found[: inside[0], : inside[1]] = mask[np.ix_(at[0], across)]
        return found


def views_of(settings: ViewSettings) -> list[View]:
    """The views in the order of the cache."""
    return [View(scale, mirrored) for scale in settings.scales for mirrored in (False, True)[: 1 + settings.flip]]


def tensor_name(picture: int, view: int, level: int) -> str:
    """The name of a feature map in its shard; pictures are numbered as in the index."""
    return f"{picture}.{view}.{level}"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"tokens-{number:05d}.safetensors"


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of `tokens.json`.

    Attributes:
        features: the identity of the network; see `wsss.foundations.Loaded`.
        views: scale and mirror image of each view.
        channels: of each feature map, the deepest last.
        factors: between the finest grid and that of each feature map.
        cell: side of the cells of the finest grid, in pixels of a view.
        names: of the pictures.
        digests: of the pictures.
        sizes: height and width of each picture.
        options: how the pictures were read; see `Images.table`.
        starts: the first picture of each shard.
        means, deviations: of the channels of each feature map, over all views.
        size: bytes of all tensors.
    """

    features: dict[str, Any]
    views: list[tuple[float, bool]]
    channels: list[int]
    factors: list[int]
    cell: int
    names: list[str]
    digests: list[str]
    sizes: list[tuple[int, int]]
    options: dict[str, Any]
    starts: list[int]
    means: list[list[float]]
    deviations: list[list[float]]
    size: int


def read_index(folder: Path) -> Index:
    """The index of a folder of tokens.

    Raises:
        BadInput: it is missing or damaged, or other versions of the libraries made the tokens.
    """
    path, expected = folder / INDEX, "the index of cached tokens"
    content = read_json(path, expected)
    names = [field.name for field in dataclasses.fields(Index)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise BadInput(path, f"{content!s:.60}", f"an object with {', '.join(names)}", _AGAIN)
    with reading(path, expected, _AGAIN):
        found = Index(**content)
        count = len(found.names)
        if not (len(found.digests) == len(found.sizes) == count and found.starts and found.starts[0] == 0):
            raise ValueError(f"{count} pictures with {len(found.digests)} digests and {len(found.sizes)} sizes")
        found = dataclasses.replace(
            found,
            views=[(float(scale), bool(mirrored)) for scale, mirrored in found.views],
            sizes=[(int(height), int(width)) for height, width in found.sizes],
        )
    check_identity(found.features, path)
    check_libraries(found.features, path)
    return found


def check_libraries(identity: Mapping[str, Any], where: Path) -> None:
    """Raise BadInput if other versions of the libraries computed tokens than those that would compute them now.

    Libraries, and versions of one library, resize position embeddings differently.
    """
    differing = [(name, before, version(name)) for name, before in identity["libraries"].items()]
    differing = [(name, before, now) for name, before, now in differing if before != now]
    if differing:
        found = "tokens made with " + ", ".join(f"{name} {before}" for name, before, _ in differing)
        expected = ", ".join(f"{name} {now}" for name, _, now in differing)
        do = "Install the versions that made them, or remove the folder and make them again."
        raise BadInput(where, found, f"{expected}, which is installed", do)


class TokenCache:
    """Reads cached tokens.

    Args:
        folder: of the tokens.

    Attributes:
        index: what is in it.
        views: the views.

    Raises:
        BadInput: see `read_index`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, read_index(folder)
        self.views = [View(scale, mirrored) for scale, mirrored in self.index.views]
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def positions(self, images: Images) -> list[int]:
        """The numbers of these pictures in the cache.

        Raises:
            BadInput: tokens of a picture are missing, or the picture has changed since, or is read in another way.
        """
        known = {name: position for position, name in enumerate(self.index.names)}
        found = []
        expected, do = f"the tokens of all pictures of {images.title}", "Make the tokens again for these pictures."
        table = images.table()
        if table["options"] != self.index.options:
            found_options = f"tokens of pictures that were read with {self.index.options}"
            raise BadInput(self.folder, found_options, f"{table['options']}", do)
        for row in table["pictures"]:
            position = known.get(row[0])
            if position is None:
                raise BadInput(self.folder, f"no tokens of {row[0]}", expected, do)
            if self.index.digests[position] != row[1]:
                raise BadInput(self.folder, f"tokens of another picture {row[0]}", expected, do)
            found.append(position)
        return found

    def grids_hw(self, position: int, view: int) -> list[tuple[int, int]]:
        """Rows and columns of each feature map."""
        return [(one.shape[1], one.shape[2]) for one in self.maps(position, view)]

    def maps(self, position: int, view: int) -> list[Tensor]:
        """The feature maps of a view of a picture, float16 (channels, rows, columns), the deepest last.

        Raises:
            BadInput: a shard is missing or damaged.
        """
        shard = bisect.bisect_right(self.index.starts, position) - 1
        path = self.folder / shard_name(shard)
        with reading(path, "a shard of cached tokens", _AGAIN, missing=_AGAIN):
            if shard not in self._open:
                if len(self._open) >= _MOST_OPEN:
                    self._open.clear()
                self._open[shard] = safetensors.safe_open(path, framework="pt", device="cpu").__enter__()
            levels = range(len(self.index.channels))
            return [self._open[shard].get_tensor(tensor_name(position, view, level)) for level in levels]


def as_tensors(rows: Sequence[Sequence[float]]) -> list[Tensor]:
    """Lists of numbers as float32 tensors."""
    return [torch.tensor(row, dtype=torch.float32) for row in rows]
