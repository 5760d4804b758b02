"""TIFFs of all kinds, written by tifffile, are read as their tags say."""

import contextlib
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import UPRIGHT
from tests.parity import inputs
from wsss.data.pictures import picture_size_hw, read_header, read_picture
from wsss.data.samples import PictureReading, apply_orientation
from wsss.errors import BadInput

tifffile = pytest.importorskip("tifffile")

H, W = 30, 40
RGB = inputs.image(H, W, 3)


def written(path, values, **options):
    options.setdefault("photometric", "rgb" if values.ndim == 3 else "minisblack")
    tifffile.imwrite(path, values, **options)
    return path


def values_of(dtype, bands, seed=0):
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = random.random((H, W, bands)).astype(kind)
    else:
        values = random.integers(np.iinfo(kind).min, np.iinfo(kind).max, (H, W, bands), kind, endpoint=True)
    return values[..., 0] if bands == 1 else values


def range_of(dtype):
    kind = np.dtype(dtype)
    return (0.0, 1.0) if kind.kind == "f" else (float(np.iinfo(kind).min), float(np.iinfo(kind).max))


def reading_for(dtype, **changes):
    kind = "float" if np.dtype(dtype).kind == "f" else "8-bit" if dtype == "uint8" else "integer"
    return PictureReading(None if dtype == "uint8" else range_of(dtype), (kind,), **changes)


def scaled(values, dtype, invert=False):
    low, high = range_of(dtype)
    levels = np.rint(np.clip((values.astype(np.float64) - low) / (high - low) * 255, 0, 255)).astype(np.uint8)
    levels = levels[..., None] if levels.ndim == 2 else levels
    return np.broadcast_to(255 - levels if invert else levels, (*levels.shape[:2], 3))


DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["minisblack", "miniswhite", "rgb"]),
    orientation=st.integers(1, 8),
    upright=st.booleans(),
    order=st.sampled_from("<>"),
    compression=st.sampled_from([None, "zlib", "lzw", "packbits"]),
    planar=st.sampled_from(["contig", "separate"]),
    tile=st.sampled_from([None, (16, 16)]),
    big=st.booleans(),
)
def test_what_was_written_is_read(
    tmp_path_factory, dtype, kind, orientation, upright, order, compression, planar, tile, big
):
    values = values_of(dtype, 3 if kind == "rgb" else 1, seed=orientation)
    stored = np.moveaxis(values, -1, 0) if kind == "rgb" and planar == "separate" else values
    path = tmp_path_factory.getbasetemp() / "any.tif"
    written(
        path,
        np.ascontiguousarray(stored),
        photometric=kind,
        planarconfig=planar if kind == "rgb" else None,
        compression=compression,
        byteorder=order,
        tile=tile,
        bigtiff=big,
        extratags=[(274, "H", 1, orientation, True)],
        metadata=None,
    )
    expected = scaled(values, dtype, kind == "miniswhite")
    expected = UPRIGHT[orientation](expected) if upright else expected
    read = read_picture(path, upright=upright, how=reading_for(dtype))
    np.testing.assert_array_equal(read, expected)
    assert picture_size_hw(path, upright=upright) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning(orientation):
    np.testing.assert_array_equal(apply_orientation(RGB, orientation), UPRIGHT[orientation](RGB))


def test_without_tifffile_pictures_that_pillow_reads_right_are_read(tmp_path, monkeypatch):
    values = {dtype: values_of(dtype, 1) for dtype in ("uint8", "int8", "uint16", "int16", "int32", "float32")}
    paths = {dtype: written(tmp_path / f"{dtype}.tif", array) for dtype, array in values.items()}
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for dtype, path in paths.items():
        np.testing.assert_array_equal(
            read_picture(path, upright=True, how=reading_for(dtype)), scaled(values[dtype], dtype)
        )


@pytest.mark.parametrize(
    ("dtype", "bands", "found"),
    [
        ("uint16", 3, "TIFF of uint16 with 3 bands"),
        ("float32", 3, "float32 with 3 bands"),
        ("uint32", 1, "uint32 with 1 band"),
    ],
)
def test_without_tifffile_others_name_the_extra(tmp_path, monkeypatch, dtype, bands, found):
    path = written(tmp_path / "a.tif", values_of(dtype, bands))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadInput, match=rf"a\.tif: found a .*{found}.*pip install 'wsss\[tiff\]'"):
        read_picture(path, upright=True, how=reading_for(dtype))


@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("own", [1, 3])
def test_a_further_band_is_what_the_file_says(tmp_path, extra, dtype, planar, own):
    values = values_of(dtype, own + 1)
    stored = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if planar == "separate" else values
    kind = "rgb" if own == 3 else "minisblack"
    path = written(
        tmp_path / "a.tif", stored, photometric=kind, extrasamples=[extra], planarconfig=planar, metadata=None
    )
    full = float(np.iinfo(dtype).max)
    colours, opaque = values[..., :own].astype(float), values[..., own:] / full
    if extra == "unspecified" and own == 1:
        with pytest.raises(BadInput, match=r"with 2 bands, which does not say which bands are colours.*--bands 3,2,1"):
            read_picture(path, upright=True, how=reading_for(dtype))
    else:
        expected = np.rint(colours / full * 255)
        if extra != "unspecified":
            expected = np.rint((expected if extra == "assocalpha" else expected * opaque) + 255 * (1 - opaque))
        read = read_picture(path, upright=True, how=reading_for(dtype))
        assert np.abs(read - np.broadcast_to(np.clip(expected, 0, 255), (H, W, 3))).max() <= 1
    chosen = read_picture(path, upright=True, how=reading_for(dtype, bands=(own + 1,)))
    np.testing.assert_array_equal(chosen, scaled(values[..., own:], dtype))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 4), ("uint8", 5), ("uint16", 4), ("float32", 13)])
def test_bands_that_nobody_explains_are_a_question(tmp_path, planar, dtype, bands):
    values = values_of(dtype, bands)
    stored = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if planar == "separate" else values
    path = written(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar, metadata=None)
    with pytest.raises(BadInput, match=rf"{dtype} with {bands} bands, which does not say which .*--bands"):
        read_picture(path, upright=True, how=reading_for(dtype))
    read = read_picture(path, upright=True, how=reading_for(dtype, bands=(4, 3, 2)))
    np.testing.assert_array_equal(read, scaled(values[..., [3, 2, 1]], dtype))


def test_rgb_with_an_unexplained_fourth_band_leaves_it_out(tmp_path):
    values = values_of("uint8", 4)
    path = written(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_picture(path, upright=True), values[..., :3])
    blob = path.read_bytes()
    # without the tag ExtraSamples, which some writers forget
    tag = blob.index(struct.pack("<HHII", 338, 3, 1, 0))
    path.write_bytes(blob[:tag] + struct.pack("<HHII", 65000, 3, 1, 0) + blob[tag + 12 :])
    assert read_header(path).alpha is None
    np.testing.assert_array_equal(read_picture(path, upright=True), values[..., :3])


def test_alpha_by_the_users_word(tmp_path):
    values = values_of("uint8", 4)
    path = written(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    opaque = values[..., 3:] / 255
    expected = np.rint(values[..., :3] * opaque + 255 * (1 - opaque))
    np.testing.assert_array_equal(read_picture(path, upright=True, how=PictureReading(bands=(1, 2, 3, 4))), expected)


def test_pages(tmp_path):
    stack = np.stack([np.full((H, W), level, np.uint16) for level in (0, 1000, 65535)])
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in stack:
            writer.write(page, photometric="minisblack", metadata=None)
    with pytest.raises(BadInput, match=r"found 3 pages .*--page N"):
        read_picture(path, upright=True, how=reading_for("uint16"))
    for page, level in ((1, 0), (2, 4), (3, 255)):
        assert (read_picture(path, upright=True, how=reading_for("uint16", page=page)) == level).all()
    with pytest.raises(BadInput, match=r"found 3 pages; expected page 4"):
        read_picture(path, upright=True, how=reading_for("uint16", page=4))


def test_pages_of_colours_are_told_apart(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for turn in (0, 128):
            writer.write(
                RGB ^ turn, photometric="rgb", metadata=None, extratags=[(274, "H", 1, 3 if turn else 1, True)]
            )
    np.testing.assert_array_equal(read_picture(path, upright=True, how=PictureReading(page=2)), np.rot90(RGB ^ 128, 2))


def test_small_copies_and_masks_are_no_pages(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(RGB[..., 0] > 9, photometric="minisblack", subfiletype=4, metadata=None)
    assert read_header(path).pages == 1
    np.testing.assert_array_equal(read_picture(path, upright=True), RGB)


def test_missing_values_are_black(tmp_path):
    values = values_of("float32", 1)
    values[:5] = np.nan
    values[5:7] = np.inf
    values[7:9] = -np.inf
    read = read_picture(written(tmp_path / "a.tif", values), upright=True, how=reading_for("float32"))
    assert (read[:5] == 0).all()
    assert (read[5:7] == 255).all()
    assert (read[7:9] == 0).all()
    white = written(tmp_path / "b.tif", values, photometric="miniswhite")
    assert (read_picture(white, upright=True, how=reading_for("float32"))[:5] == 0).all()
    empty = written(tmp_path / "c.tif", np.full((H, W), np.nan, np.float32))
    with pytest.raises(BadInput, match=r"c\.tif: found no value at all"):
        read_picture(empty, upright=True, how=reading_for("float32"))


def test_what_gdal_calls_no_data_is_black(tmp_path):
    values = values_of("int16", 1)
    values[:9] = -32767
    path = written(tmp_path / "a.tif", values, photometric="miniswhite", extratags=[(42113, "s", 0, "-32767", True)])
    assert read_header(path).nodata == -32767
    assert (read_picture(path, upright=True, how=reading_for("int16"))[:9] == 0).all()


@pytest.mark.parametrize("compression", ["zstd", "jpeg2000", "jpegxl", "lerc"])
def test_compressions_that_pillow_lacks(tmp_path, compression):
    path = written(
        tmp_path / "a.tif",
        RGB,
        compression=compression,
        compressionargs={"level": 0} if compression == "jpeg2000" else {},
    )
    np.testing.assert_array_equal(read_picture(path, upright=True), RGB)


@pytest.mark.parametrize(
    ("values", "options", "found"),
    [
        (np.zeros((H, W), np.complex64), {}, "64-bit complex samples"),
        (np.zeros((H, W), np.uint64), {}, "64-bit unsigned samples"),
        (np.zeros((H, W, 4), np.uint16), {"photometric": "separated"}, "CMYK in uint16 with 4 bands"),
        (np.zeros((H, W), np.uint16), {"photometric": "cfa"}, "colour filter array"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, values, options, found):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    for read in (read_picture, picture_size_hw):
        with pytest.raises(BadInput, match=rf"a\.tif: found a TIFF of {found}"):
            read(path, upright=True)


def test_a_chain_of_pages_that_bites_its_tail(tmp_path):
    path = written(tmp_path / "a.tif", RGB, metadata=None)
    blob = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", blob, 4)[0]
    n = struct.unpack_from("<H", blob, first)[0]
    struct.pack_into("<I", blob, first + 2 + 12 * n, first)
    path.write_bytes(blob)
    assert read_header(path).pages == 1


@pytest.mark.parametrize("size", [(100_000, 100_000), (0, 40)])
def test_unlikely_sizes_are_refused_before_anything_is_decoded(tmp_path, size):
    path = written(tmp_path / "a.tif", values_of("uint16", 3), metadata=None)
    blob = bytearray(path.read_bytes())
    for tag, value in ((257, size[0]), (256, size[1])):
        at = next(at for kind in (3, 4) if (at := blob.find(struct.pack("<HHI", tag, kind, 1))) > 0)
        struct.pack_into("<HHII", blob, at, tag, 4, 1, value)
    path.write_bytes(blob)
    with pytest.raises(BadInput, match=r"found a picture of (an unlikely size .100000x100000|0x40) pixels"):
        read_picture(path, upright=True, how=reading_for("uint16"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([("uint8", 3), ("uint16", 1), ("uint16", 3), ("float32", 1), ("uint8", 5)]),
    st.sampled_from([None, "zlib", "lzw"]),
    st.data(),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, kind, compression, data):
    dtype, bands = kind
    path = tmp_path_factory.getbasetemp() / "damaged.tif"
    options = {"photometric": "minisblack"} if bands == 5 else {}
    written(path, values_of(dtype, bands)[:8, :8].copy(), compression=compression, metadata=None, **options)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, min(len(blob), 300) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob[: data.draw(st.sampled_from([len(blob), len(blob) - 20, len(blob) // 2, 9]))])
    with contextlib.suppress(BadInput):
        assert read_picture(path, upright=True, how=reading_for(dtype, bands=(3, 2, 1) if bands == 5 else ())).ndim == 3
    with contextlib.suppress(BadInput):
        assert min(picture_size_hw(path, upright=True)) > 0
