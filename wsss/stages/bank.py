"""Make the bank of a retrieval segmenter: one vector for each region of the pseudo masks."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.corrections import corrected_pictures
from wsss.data.files import read_arrays
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput
from wsss.foundations import CLASSIFIER, load_features
from wsss.networks.features import DenseFeatures
from wsss.ops.region_shapes import LabelledRegions, eroded_regions
from wsss.ops.regions import Regions
from wsss.run import stage
from wsss.segmenters.bank import Bank
from wsss.segmenters.learning import known_long_sides, typical_long_sides
from wsss.segmenters.retrieval import (
    KIND,
    NONE,
    RetrievalSettings,
    described,
    network_digest,
    opened_bank,
    pooling_needs,
)
from wsss.stages.each import for_each_picture
from wsss.storage import whole_file
from wsss.weights import BANK, read_metadata, reading_of, write_weights

log = logging.getLogger("wsss")

# of each picture, until the bank is written
_VECTORS, _SUFFIX = "vectors", ".npz"
_NAMES = ("vectors", "labels", "areas", "boxes")


class _Start(NamedTuple):
    """What a bank starts from.

    Attributes:
        features: the network.
        identity: what the file says about it.
        weights: of the network, if the file holds them.
        bank: the bank to add to.
        classes: all classes; those of that bank come first.
        long_sides: of its pictures, None for a new bank.
    """

    features: DenseFeatures
    identity: dict[str, Any]
    weights: Mapping[str, Tensor]
    bank: Bank | None
    classes: tuple[str, ...]
    long_sides: tuple[int, int] | None


@stage(kind="bank", makes="weights", title=None)
def make_bank(settings: RetrievalSettings, images: Images, *, out: Path, masks: Path, **inputs: Path) -> dict[str, Any]:
    """Write `bank.safetensors`: the features of the regions of all masks, or those added to the bank in `settings.init`.

    Pictures whose vectors are stored are skipped, so that a killed stage continues; 1 and n processes write the same bytes.

    Args:
        settings: of the segmenter.
        images: the pictures.
        out: the stage's folder.
        masks: folder of their pseudo masks.
        inputs: `corrected`, a folder of corrected masks of some pictures, which are used instead.

    Raises:
        BadInput: no region of any class is left after the erosion; or the network, the classes or the reading of the pictures do not fit
            the bank that is added to.
    """
    path = out / BANK
    if not launch.decided_by_first(path.exists):  # otherwise killed between its last file and its record
        start = _start(settings, images)
        _write_vectors(settings, images, start.features.to(launch.device()), masks, inputs.get("corrected"), out)
        launch.wait()
        launch.decided_by_first(lambda: _write_bank(settings, images, start, out))
    if launch.is_first() and (out / _VECTORS).exists():
        shutil.rmtree(out / _VECTORS)
    launch.wait()
    return dict(read_metadata(path)["result"])


def _start(settings: RetrievalSettings, images: Images) -> _Start:
    if settings.init == NONE:
        loaded = load_features(settings.features)
        kept = loaded.features.network.state_dict() if loaded.body is not None else {}
        return _Start(loaded.features, loaded.identity, kept, None, images.class_names, None)
    where = Path(settings.init)
    bank, metadata, features, weights = opened_bank(where)
    if settings.features.source != CLASSIFIER:
        given = load_features(settings.features)
        if given.digest != metadata["features"]["digest"]:
            found = f"another network than that of the bank {where} ({metadata['features']['source']})"
            do = "Leave features.source out, or make a new bank."
            raise BadInput("features.source", found, "the same network, so that vectors can be compared", do)
    before = reading_of(where) or DEFAULT_READING
    if before != images.reading:
        found, expected = f"pictures read with {images.reading}", f"{before}, as those of the bank {where}"
        raise BadInput(images.title, found, expected, "Give the same --value_range and --bands.")
    classes = tuple(metadata["classes"])
    classes += tuple(name for name in images.class_names if name not in classes)
    replaced = [name for name in images.names if name in set(bank.names)]
    if launch.is_first():
        log.info("%s: %d regions of %d pictures; %d pictures are added", where, len(bank), len(bank.names), len(images))
        if new := classes[len(metadata["classes"]) :]:
            log.info("%s: new classes: %s", where, ", ".join(new))
        if replaced:
            log.info("%s: %d pictures with the same names (%s, ..) are replaced", where, len(replaced), replaced[0])
    sides = known_long_sides(metadata, where)
    return _Start(features, metadata["features"], weights, bank.without_pictures(replaced), classes, sides)


def _write_vectors(
    settings: RetrievalSettings, images: Images, features: DenseFeatures, masks: Path, corrected: Path | None, out: Path
) -> None:
    """Write the vectors of each picture."""
    chosen = frozenset[int]() if corrected is None else frozenset(corrected_pictures(images, corrected))

    def load(index: int) -> tuple[UInt8[np.ndarray, "h w 3"], LabelledRegions]:
        folder = corrected if corrected is not None and index in chosen else masks
        image, mask = images.read_with(folder, index)
        found = eroded_regions(
            mask,
            erosion=settings.erosion,
            share=settings.erosion_share,
            components=settings.components,
            fewest_pixels=settings.fewest_pixels,
        )
        return image, found

    def compute(_: int, loaded: tuple[UInt8[np.ndarray, "h w 3"], LabelledRegions]) -> dict[str, np.ndarray]:
        image, found = loaded
        if not len(found.labels):
            return _stored(np.zeros((0, features.channels), np.float32), found)
        return _stored(described(features, image, Regions.of_masks(found.masks)), found)

    title, needs = f"describe regions {out.name}", pooling_needs(images, features)
    for_each_picture(images, out / _VECTORS, _SUFFIX, load, compute, _write, title=title, needs=needs)


def _stored(vectors: Float[np.ndarray, "n d"], found: LabelledRegions) -> dict[str, np.ndarray]:
    """What is stored of a picture; vectors without a direction are left out."""
    usable = np.isfinite(vectors).all(1) & (np.linalg.norm(vectors, axis=1) > 1e-6)
    masks = found.masks[usable]
    return {
        "vectors": vectors[usable].astype(np.float16),
        "labels": found.labels[usable],
        "areas": masks.sum((1, 2)).astype(np.int32),
        "boxes": np.array([_box(mask) for mask in masks], np.int32).reshape(-1, 4),
    }


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _collected(settings: RetrievalSettings, images: Images, start: _Start, out: Path) -> Bank:
    """The vectors of all pictures, with the labels of the bank."""
    expected = "the vectors of the regions of a picture"
    parts = [
        read_arrays(out / _VECTORS / f"{name}{_SUFFIX}", _NAMES, expected, f"Remove {out}, and run the command again.")
        for name in images.names
    ]
    vectors, labels, areas, boxes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (labels > 0).any() and (start.bank is None or not (start.bank.labels > 0).any()):
        by = f"{settings.erosion} pixels" if settings.erosion_share is None else f"a share of {settings.erosion_share}"
        raise BadInput(
            "segmenter.erosion",
            f"no region of a class with {settings.fewest_pixels} pixels in {len(images)} masks after an erosion by {by}",
            "regions that are left",
            "Set --segmenter.erosion_share 0.1 and --segmenter.fewest_pixels 50 for small pictures (`wsss refine`: a smaller --votes.erosion and "
            "--votes.fewest_pixels); see docs/segment.md.",
        )
    ours = np.array([0, *(start.classes.index(name) + 1 for name in images.class_names)], np.uint8)
    pictures = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]).astype(np.int32)
    return Bank(images.names, vectors, ours[labels], pictures, areas, boxes)


def _write_bank(settings: RetrievalSettings, images: Images, start: _Start, out: Path) -> None:
    new = _collected(settings, images, start, out)
    bank = new if start.bank is None else start.bank.joined(new)
    n_labels = len(start.classes) + 1
    voting = bank.chosen(bank.kept(settings.dropped))
    threshold = 0.0
    if settings.background == "left-out":
        threshold = voting.threshold(n_labels, settings.neighbours, settings.voting)
    sides = [typical_long_sides(images), *([start.long_sides] if start.long_sides else [])]
    counts = np.bincount(bank.labels, minlength=n_labels).tolist()
    for name, count in zip(start.classes, counts[1:], strict=True):
        if not count:
            log.warning("%s: no region of `%s` is left after the erosion, so it will never be predicted", out, name)
    kept = dataclasses.asdict(dataclasses.replace(settings, init=NONE))
    model = kept["proposer"].get("model")
    if model is not None and os.path.exists(model):
        kept["proposer"]["model"] = os.path.abspath(model)
    metadata = {
        "kind": KIND,
        "classes": list(start.classes),
        "pictures": list(bank.names),
        "features": start.identity,
        "proposer": {"digest": network_digest(settings.proposer.proposer())},
        "settings": {name: value for name, value in kept.items() if name != "features"},
        "threshold": threshold,
        "long_sides": [min(low for low, _ in sides), max(high for _, high in sides)],
        "result": {
            "pictures": len(bank.names),
            "regions": dict(zip(("background", *start.classes), counts, strict=True)),
            "threshold of the background": round(threshold, 4),
        },
    }
    if images.reading != DEFAULT_READING:
        metadata["reading"] = images.reading.plain()
    write_weights(out / BANK, bank.state(start.weights), json.loads(json.dumps(metadata)))
