"""Files of regions: one compressed `NAME.npz` for each picture."""

from pathlib import Path

import numpy as np

from wsss.data.files import read_arrays
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.ops.regions import Regions
from wsss.storage import whole_file

SUFFIX = ".npz"
_NAMES = ("size", "lengths", "atoms", "counts", "members", "areas", "scores", "levels")
_EXPECTED = f"an .npz file of regions, as written by `wsss regions`, with {', '.join(f'`{name}`' for name in _NAMES)}"
_DO = "Make the regions again (wsss regions)."


def write_regions(path: Path, regions: Regions) -> None:
    """Write the regions of one picture as a compressed `.npz` that holds no pickles.

    The atoms are run-length encoded, row by row: `lengths` and `atoms` are the length of each run and the atom that it belongs to, and a
    run may continue in the next row. `counts` and `members` say which atoms a region contains. `size` is height and width, `areas` the
    number of pixels of each region.
    """
    flat = regions.atoms.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    arrays = {
        "size": np.asarray(regions.size_hw, np.int32),
        "lengths": _narrow(np.diff(starts, append=flat.size)),
        "atoms": _narrow(flat[starts]),
        "counts": _narrow(regions.counts),
        "members": _narrow(regions.members),
        "areas": regions.areas.astype(np.int32),
        "scores": regions.scores,
        "levels": regions.levels,
    }
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_regions(path: Path, size_hw: tuple[int, int]) -> Regions:
    """Read the regions of one picture, of this height and width, from a file of `write_regions`.

    Raises:
        BadInput: the file is missing or damaged, holds something else, or was made for a picture of another size.
    """
    missing = "Make regions of all pictures (wsss regions, with the same --data and --split), or check --regions."
    found = dict(zip(_NAMES, read_arrays(path, _NAMES, _EXPECTED, _DO, missing=missing), strict=True))
    for name, values in found.items():
        kinds = {"size": "i", "areas": "i", "scores": "f"}.get(name, "u")
        if values.ndim != 1 or values.dtype.kind not in kinds:
            raise BadInput(path, f"`{name}` of {values.dtype} and shape {values.shape}", _EXPECTED, _DO)
    if found["size"].tolist() != list(size_hw):
        of, expected = ("x".join(map(str, size)) for size in (found["size"].tolist(), size_hw))
        do = "Make the regions again for this dataset."
        raise BadInput(path, f"regions of a picture of {of} (height x width)", expected, do)
    lengths, atoms, pixels = found["lengths"].astype(np.int64), found["atoms"].astype(np.int64), size_hw[0] * size_hw[1]
    # lengths that no run can have are refused before their sum is taken, which could overflow
    if len(lengths) != len(atoms) or ((lengths < 1) | (lengths > pixels)).any() or lengths.sum() != pixels:
        raise BadInput(
            path, f"{len(atoms)} runs, {len(lengths)} lengths of {lengths.sum()} pixels", f"{pixels} pixels", _DO
        )
    if atoms.max(initial=0) >= len(atoms) or found["levels"].max(initial=0) > 255:
        high = f"atoms up to {atoms.max(initial=0)} in {len(atoms)} runs, levels up to {found['levels'].max(initial=0)}"
        raise BadInput(path, high, _EXPECTED, _DO)
    # a region has each atom once; more would only fill the memory
    most = int(atoms.max(initial=0)) + 1
    if len(found["members"]) > len(found["counts"]) * most:
        many = f"{len(found['members'])} atoms in {len(found['counts'])} regions"
        raise BadInput(path, many, f"at most {most} in each", _DO)
    try:
        regions = Regions(
            np.repeat(atoms.astype(np.int32), lengths).reshape(size_hw),
            found["counts"].astype(np.int64),
            found["members"].astype(np.int64),
            found["scores"].astype(np.float32),
            found["levels"].astype(np.uint8),
        )
    except BadInput as error:
        raise BadInput(path, error.found, error.expected, _DO) from error
    if not np.array_equal(regions.areas, found["areas"]):
        raise BadInput(path, "`areas` that differ from those of the regions", _EXPECTED, _DO)
    return regions


def read_regions_of(images: Images, folder: Path, index: int, size_hw: tuple[int, int]) -> Regions:
    """The regions of a picture in the folder of a stage; see `read_regions`."""
    return read_regions(folder / f"{images.names[index]}{SUFFIX}", size_hw)


def _narrow(values: np.ndarray) -> np.ndarray:
    """The values in the smallest unsigned type that holds all of them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
