"""Cache the tokens of a frozen network for all pictures, once: `wsss.segmenters.tokens` says what is in the folder."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import UInt8
from wsss.data.images import Images
from wsss.errors import BadInput, reading
from wsss.foundations import Loaded, load_features
from wsss.networks.features import DenseFeatures
from wsss.progress import Progress
from wsss.run import stage
from wsss.segmenters.tokens import (
    INDEX,
    Index,
    TokenSettings,
    View,
    check_libraries,
    read_index,
    shard_name,
    tensor_name,
    views_of,
)
from wsss.storage import write_json
from wsss.stream import in_threads
from wsss.weights import read_metadata, write_weights

log = logging.getLogger("wsss")

# bytes of a shard, and the fewest shards of a large enough cache, so that several processes have work
_SHARD, _FEWEST = 64 << 20, 16
_SUMS = "sums"


@stage(kind="tokens", makes="tokens", title=None)
def cache_tokens(settings: TokenSettings, images: Images, *, out: Path) -> dict[str, Any]:
    """Write the feature maps of all views of all pictures, in half precision.

    What the cache takes on the disk is known before, and logged. Shards appear whole or not at all, and those that are there are kept,
    so a killed stage continues; 1 and n processes write the same shards.

    Args:
        settings: the network and the views.
        images: the pictures.
        out: the stage's folder.

    Raises:
        BadInput: the cache is larger than the settings or the disk allow; a picture cannot be read; features do not fit into half
            precision; or the shards that are there were made by another network or another version of a library.
    """
    if not launch.decided_by_first((out / INDEX).exists):  # otherwise killed between its last file and its record
        loaded = load_features(settings.features)
        views, sizes = views_of(settings.views), list(in_threads(images.size_hw, range(len(images))))
        bytes_each = [token_bytes(loaded.features, views, size_hw) for size_hw in sizes]
        starts = _starts(bytes_each)
        launch.decided_by_first(lambda: _check_room(settings, out, sum(bytes_each), len(images), len(views)))
        _write_shards(loaded, views, images, starts, out)
        launch.wait()
        if launch.is_first():
            write_json(out / INDEX, dataclasses.asdict(_index(loaded, views, images, sizes, starts, out)))
        launch.wait()
    index = read_index(out)
    return {"images": len(images), "views": len(index.views), "bytes": index.size}


def token_bytes(features: DenseFeatures, views: Sequence[View], size_hw: tuple[int, int]) -> int:
    """Bytes of the tensors of a picture of this height and width."""
    return sum(
        2 * rows * columns * channels
        for view in views
        for (rows, columns), channels in zip(
            features.grids_hw(view.size_hw(size_hw)), features.map_channels, strict=True
        )
    )


def _starts(bytes_each: Sequence[int]) -> list[int]:
    """The first picture of each shard."""
    largest, starts, filled = min(_SHARD, sum(bytes_each) // _FEWEST), [0], 0
    for index, count in enumerate(bytes_each):
        if filled and filled + count > largest:
            starts.append(index)
            filled = 0
        filled += count
    return starts


def _check_room(settings: TokenSettings, out: Path, total: int, pictures: int, views: int) -> None:
    text, most = f"{total / 1e9:.2f} GB", settings.views.most_gb
    log.info("%s: the tokens of %d pictures, %d views each, take %s", out, pictures, views, text)
    less = "Use fewer views (--segmenter.views.flip false), fewer or smaller feature maps (features.layers, features.enlarge), or a smaller network."
    if total > most * 1e9:
        raise BadInput(out, f"{text} of tokens", f"at most {most:g} GB", f"{less} Or set --segmenter.views.most_gb.")
    there = sum(path.stat().st_size for path in out.glob(shard_name(0).replace("00000", "*")))
    free = shutil.disk_usage(out).free
    if total - there > free:
        raise BadInput(out, f"a disk with {free / 1e9:.2f} GB of free space", f"{text} for tokens", less)


def _write_shards(loaded: Loaded, views: Sequence[View], images: Images, starts: Sequence[int], out: Path) -> None:
    ends = [*starts[1:], len(images)]
    share = launch.share(range(len(starts)))
    todo = [number for number in share if not _made(out / shard_name(number), loaded)]
    features = loaded.features.to(launch.device())
    indices = [index for number in todo for index in range(starts[number], ends[number])]
    with (
        Progress(f"cache {out.name}", len(share), done=len(share) - len(todo)) as progress,
        closing(in_threads(images.read, indices, threads=launch.threads())) as pictures,
    ):
        for number in todo:
            tensors = _shard(features, views, images, range(starts[number], ends[number]), pictures)
            write_weights(out / shard_name(number), tensors, {"features": loaded.identity})
            progress.advance()


def _made(path: Path, loaded: Loaded) -> bool:
    """Whether a shard is there.

    Raises:
        BadInput: another network, or another version of a library, made it.
    """
    if not path.exists():
        return False
    identity = read_metadata(path).get("features", {})
    check_libraries({"libraries": dict(identity.get("libraries", {}))}, path)
    if identity.get("digest") != loaded.digest:
        raise BadInput(path, "tokens of another network", loaded.source, "Remove the folder, and run it again.")
    return True


def _shard(
    features: DenseFeatures,
    views: Sequence[View],
    images: Images,
    chosen: Sequence[int],
    pictures: Iterator[UInt8[np.ndarray, "h w 3"]],
) -> dict[str, Tensor]:
    """The tensors of some pictures, and of each feature map the number of cells, the sums and the sums of squares of the channels."""
    tensors: dict[str, Tensor] = {}
    sums = [torch.zeros(3, channels, dtype=torch.float64) for channels in features.map_channels]
    for index in chosen:
        image = next(pictures)
        for number, maps in enumerate(_tokens(features, views, image)):
            for level, tokens in enumerate(maps):
                if not tokens.isfinite().all():
                    do = "Choose another network, or other layers of it (features.layers)."
                    raise BadInput(
                        images.where(index), "features beyond 65504", "features that fit into half precision", do
                    )
                tensors[tensor_name(index, number, level)] = tokens
                cells = tokens.flatten(1).double()
                sums[level] += torch.stack(
                    [torch.full_like(cells[:, 0], cells.shape[1]), cells.sum(1), cells.square().sum(1)]
                )
    return {**tensors, **{f"{_SUMS}.{level}": one for level, one in enumerate(sums)}}


@torch.inference_mode()
def _tokens(
    features: DenseFeatures, views: Sequence[View], image: UInt8[np.ndarray, "h w 3"]
) -> Iterator[list[Tensor]]:
    for view in views:
        maps = features(view.planes(image).to(features.mean.device))
        yield [one[0].half().cpu().contiguous() for one in maps]


def _index(
    loaded: Loaded,
    views: Sequence[View],
    images: Images,
    sizes: Sequence[tuple[int, int]],
    starts: Sequence[int],
    out: Path,
) -> Index:
    features, table = loaded.features, images.table()
    means, deviations, size = [], [], 0
    for level in range(len(features.map_channels)):
        total = torch.zeros(3, features.map_channels[level], dtype=torch.float64)
        for number in range(len(starts)):
            path = out / shard_name(number)
            with reading(path, "a shard of cached tokens"), safetensors.safe_open(path, "pt", device="cpu") as file:
                total += file.get_tensor(f"{_SUMS}.{level}")
        mean = total[1] / total[0]
        means.append(mean.tolist())
        deviations.append((total[2] / total[0] - mean.square()).clamp_min(0).sqrt().tolist())
    size = sum(token_bytes(features, views, size_hw) for size_hw in sizes)
    return Index(
        features=loaded.identity,
        views=[(view.scale, view.mirrored) for view in views],
        channels=features.map_channels,
        factors=features.factors,
        cell=features.cell,
        names=list(images.names),
        digests=[row[1] for row in table["pictures"]],
        sizes=list(sizes),
        options=table["options"],
        starts=list(starts),
        means=means,
        deviations=deviations,
        size=size,
    )
