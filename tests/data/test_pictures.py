"""Pictures of all kinds are read alike, and each kind of broken one gets its own message."""

import contextlib
import io
import os
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from tests.data.conftest import UPRIGHT, write_picture
from tests.parity import inputs
from wsss.data.files import read_mask
from wsss.data.pictures import count_frames, picture_size_hw, read_header, read_picture
from wsss.data.samples import PictureReading
from wsss.errors import BadInput

RGB = inputs.image(30, 40, 3)
DEEP = np.kron(RGB, np.ones((4, 4, 1), np.uint8)).astype(np.uint16) * 257
FULL = PictureReading((0, 65535), ("integer",))


def saved(tmp_path, picture: Image.Image, name: str, **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_colour_comes_out_as_it_went_in(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.png")
    np.testing.assert_array_equal(read_picture(path, upright=True), RGB)
    assert picture_size_hw(path, upright=True) == (30, 40)


def test_grey(tmp_path):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(
        read_picture(saved(tmp_path, Image.fromarray(grey), "a.png"), upright=True), np.repeat(grey[..., None], 3, 2)
    )


def test_cmyk(tmp_path):
    read = read_picture(saved(tmp_path, Image.fromarray(RGB).convert("CMYK"), "a.tif"), upright=True)
    np.testing.assert_array_equal(read, RGB)


def test_palette(tmp_path):
    few = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        read_picture(saved(tmp_path, few, "a.gif"), upright=True), np.asarray(few.convert("RGB"))
    )


def test_transparent_pixels_are_white(tmp_path):
    alpha = np.full((30, 40), 255, np.uint8)
    alpha[:, :20] = 0
    read = read_picture(saved(tmp_path, Image.fromarray(np.dstack([RGB, alpha])), "a.png"), upright=True)
    assert (read[:, :20] == 255).all()
    np.testing.assert_array_equal(read[:, 20:], RGB[:, 20:])


def test_one_pixel(tmp_path):
    assert read_picture(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "a.png"), upright=True).tolist() == [
        [[1, 2, 3]]
    ]


def test_a_very_large_picture(tmp_path):
    path = saved(tmp_path, Image.new("L", (9000, 7000), 7), "a.png")
    read = read_picture(path, upright=True)
    assert read.shape == (7000, 9000, 3)
    assert (read[-1, -1] == 7).all()


def test_cut_off(tmp_path):
    path = write_picture(tmp_path / "a.jpg", (64, 64))
    path.write_bytes(path.read_bytes()[:900])
    assert picture_size_hw(path, upright=True) == (64, 64)
    with pytest.raises(BadInput, match=r"a\.jpg: found a file that cannot be read .*truncated.*--skip-bad"):
        read_picture(path, upright=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "an empty file"), (b"this is a text", "no picture .it begins with b'this is a text'")],
)
def test_no_picture(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (read_picture, picture_size_hw):
        with pytest.raises(BadInput, match=rf"a\.jpg: found {message}"):
            read(tmp_path / "a.jpg", upright=True)


def test_missing_and_folder(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_picture(tmp_path / "a.jpg", upright=True)
    with pytest.raises(BadInput, match="a folder"):
        read_picture(tmp_path, upright=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}),
        ("a.tif", {}),
        ("b.tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_orientation_turns_pictures_and_their_sizes(tmp_path, name, options, mode):
    picture = Image.fromarray(RGB).convert(mode)
    stored = np.asarray(picture.convert("RGB")).astype(int)
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        how = {"tiffinfo": {0x0112: orientation}} if name.endswith("tif") else {"exif": exif}
        path = saved(tmp_path, picture, name, **options, **how)
        for upright in (True, False):
            expected = turn(stored) if upright else stored
            read = read_picture(path, upright=upright)
            assert read.shape == expected.shape
            assert np.abs(read - expected).max() < 16  # of codecs that lose a little
            assert picture_size_hw(path, upright=upright) == expected.shape[:2]


@pytest.mark.parametrize("name", ["a.jp2", "a.avif", "a.ppm", "a.bmp", "a.webp"])
def test_other_formats(tmp_path, name):
    options = {"a.avif": {"quality": 100, "subsampling": "4:4:4"}, "a.webp": {"lossless": True}}.get(name, {})
    path = saved(tmp_path, Image.fromarray(RGB), name, **options)
    assert np.abs(read_picture(path, upright=True).astype(int) - RGB).max() <= 4
    assert picture_size_hw(path, upright=True) == (30, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jp2"])
@pytest.mark.parametrize("bits", [16, 12])
def test_colours_of_more_than_8_bits_keep_them(tmp_path, name, bits):
    values = DEEP >> (16 - bits)
    cv2.imwrite(str(tmp_path / name), values[..., ::-1])
    header = read_header(tmp_path / name)
    assert (header.kind, header.bands, header.colours) == ("integer", 3, (0, 1, 2))
    read = read_picture(tmp_path / name, upright=True, how=PictureReading((0, 2**bits - 1), ("integer",)))
    # JPEG 2000 may be lossy
    assert np.abs(read - np.rint(values / (2**bits - 1) * 255)).max() <= (1 if name == "a.jp2" else 0)


def test_transparent_colours_of_16_bits(tmp_path):
    opaque = np.full(DEEP.shape[:2], 65535, np.uint16)
    opaque[:, :80] = 0
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([DEEP[..., ::-1], opaque]))
    read = read_picture(tmp_path / "a.png", upright=True, how=FULL)
    assert (read[:, :80] == 255).all()
    np.testing.assert_array_equal(read[:, 80:], DEEP[:, 80:] >> 8)


def test_colours_of_16_bits_that_are_cut_off(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), DEEP)
    blob = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(blob[: len(blob) // 2])
    with pytest.raises(BadInput, match=r"a\.png: found .*truncated"):
        read_picture(tmp_path / "a.png", upright=True, how=FULL)


def test_grey_of_more_than_8_bits(tmp_path):
    path = saved(tmp_path, Image.fromarray(DEEP[..., 1]), "a.png")
    np.testing.assert_array_equal(read_picture(path, upright=True, how=FULL)[..., 2], DEEP[..., 1] >> 8)
    (tmp_path / "a.pgm").write_bytes(b"P5\n160 120\n65535\n" + DEEP[..., 1].astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm", upright=True, how=FULL)[..., 2], DEEP[..., 1] >> 8)


@given(low=st.integers(0, 60000), span=st.integers(1, 70000))
@settings(max_examples=20, deadline=None)
def test_the_range_is_the_same_line_for_every_picture(tmp_path_factory, low, span):
    path = tmp_path_factory.getbasetemp() / "line.png"
    Image.fromarray(DEEP[..., 0]).save(path)
    read = read_picture(path, upright=True, how=PictureReading((low, low + span), ("integer",)))[..., 0]
    expected = [min(max(round((int(v) - low) / span * 255), 0), 255) for v in DEEP[::4, ::4, 0].ravel()]
    assert (
        np.abs(read[::4, ::4].ravel() - np.array(expected)).max() <= 1
    )  # halves are rounded to even here, and by float error


def test_a_strict_range_refuses_what_is_beyond(tmp_path):
    path = saved(tmp_path, Image.fromarray(DEEP[..., 0]), "a.png")
    most = int(DEEP[..., 0].max())
    read_picture(path, upright=True, how=PictureReading((0, most), ("integer",), strict=True))
    with pytest.raises(BadInput, match=rf"the value {most} in a PNG .*expected values 0 to {most - 1}.*--value-range"):
        read_picture(path, upright=True, how=PictureReading((0, most - 1), ("integer",), strict=True))


def test_pictures_of_another_kind_are_refused(tmp_path):
    deep = saved(tmp_path, Image.fromarray(DEEP[..., 0]), "deep.png")
    plain = write_picture(tmp_path / "plain.jpg")
    with pytest.raises(
        BadInput, match=r"deep\.png: found a PNG of uint16 with 1 band; expected 8-bit pictures.*--value-range"
    ):
        read_picture(deep, upright=True)
    with pytest.raises(
        BadInput, match=r"plain\.jpg: found a JPEG of uint8 with 3 bands; expected integer samples, values 0 to 65535"
    ):
        read_picture(plain, upright=True, how=FULL)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_bands_of_ordinary_pictures(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(RGB), name, **({"lossless": True} if name == "a.webp" else {}))
    usual = read_picture(path, upright=True)
    np.testing.assert_array_equal(
        read_picture(path, upright=True, how=PictureReading(bands=(3, 1, 2))), usual[..., [2, 0, 1]]
    )
    np.testing.assert_array_equal(
        read_picture(path, upright=True, how=PictureReading(bands=(2,))), np.repeat(usual[..., 1:2], 3, 2)
    )
    with pytest.raises(BadInput, match=rf"{name}: found a .* with 3 bands; expected band 4"):
        read_picture(path, upright=True, how=PictureReading(bands=(4, 3, 2)))


def test_a_range_for_8_bits_stretches_them(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB // 16), "a.png")
    np.testing.assert_array_equal(read_picture(path, upright=True, how=PictureReading((0, 15))), RGB // 16 * 17)


def test_frames_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((30, 40), level, np.uint8)) for level in (0, 100, 200)]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert count_frames(tmp_path / name) == 3
        for page, level in ((None, 0), (1, 0), (2, 100), (3, 200)):
            assert (read_picture(tmp_path / name, upright=True, how=PictureReading(page=page)) == level).all()
        with pytest.raises(BadInput, match=r"found 3 pages; expected page 4"):
            read_picture(tmp_path / name, upright=True, how=PictureReading(page=4))


def test_the_preview_in_a_phone_s_jpeg_is_no_frame(tmp_path):
    first = Image.fromarray(RGB)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[first.resize((20, 15))])
    assert count_frames(tmp_path / "a.jpg") == 1
    assert read_picture(tmp_path / "a.jpg", upright=True).shape == (30, 40, 3)


def test_cmyk_of_photoshop_is_inverted(tmp_path):
    cmyk = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    path = saved(tmp_path, Image.fromarray(255 - cmyk, mode="CMYK"), "a.jpg", quality=100, subsampling=0)
    blob = path.read_bytes()
    # Adobe's marker, without a colour transform
    path.write_bytes(
        blob[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + blob[2:].replace(b"\xff\xee", b"\xff\xef")
    )
    usual = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_picture(path, upright=True), usual)


def test_lab(tmp_path):
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    colours = Image.fromarray(np.array([[[255, 255, 255], [0, 0, 0], [128, 128, 128], [200, 80, 60]]], np.uint8))
    path = saved(tmp_path, ImageCms.profileToProfile(colours, rgb, lab, outputMode="LAB"), "a.tif")
    assert np.abs(read_picture(path, upright=True).astype(int) - np.asarray(colours)).max() <= 3


def test_few_bits_and_a_palette_with_transparency(tmp_path):
    grey = Image.fromarray(RGB[..., 0])
    two = saved(tmp_path, grey.convert("1"), "1.png")
    assert set(np.unique(read_picture(two, upright=True))) == {0, 255}
    few = grey.convert("RGB").quantize(8)
    path = saved(tmp_path, few, "p.png", transparency=3, bits=4)
    read = read_picture(path, upright=True)
    chosen = np.asarray(few) == 3
    assert chosen.any()
    assert (read[chosen] == 255).all()
    np.testing.assert_array_equal(read[~chosen], np.asarray(few.convert("RGB"))[~chosen])


def test_a_wrong_suffix_does_not_matter(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg", upright=True), RGB)
    Image.fromarray(RGB).save(tmp_path / "b.png", "TIFF")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png", upright=True), RGB)


def test_a_page_from_the_web_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(BadInput, match=r"a\.jpg: found no picture .it begins with b'<!DOCTYPE html>"):
        read_picture(tmp_path / "a.jpg", upright=True)


def test_what_would_not_fit_into_memory(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x"))
    for read in (read_picture, picture_size_hw):
        with pytest.raises(BadInput, match=r"a\.png: found a picture of an unlikely size"):
            read(tmp_path / "a.png", upright=True)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match="a named pipe"):
        read_picture(tmp_path / "a.jpg", upright=True)


@pytest.mark.parametrize(
    ("name", "content", "library", "extra"),
    [
        ("a.dcm", bytes(128) + b"DICM", "pydicom", "dicom"),
        ("a.nii", b"\x5c\x01\0\0", "nibabel", "nifti"),
        ("a.nii.gz", b"\x1f\x8b", "nibabel", "nifti"),
    ],
)
def test_formats_of_optional_libraries_name_the_extra(tmp_path, monkeypatch, name, content, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}: found a .* file; .*pip install 'wsss\[{extra}\]'"):
        read_picture(tmp_path / name, upright=True)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "16":
        return cv2.imencode(".png", DEEP[::4, ::4])[1].tobytes()
    Image.fromarray(RGB).save(stream, kind)
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "16"]), st.data())
def test_damaged_pictures_are_read_or_refused(tmp_path_factory, kind, data):
    blob = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 6))):
        # most of what matters stands at the beginning, and in TIFFs at the end
        near = data.draw(st.sampled_from([len(blob), min(len(blob), 64)]))
        blob[data.draw(st.integers(-near, near - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(blob[: data.draw(st.integers(1, len(blob)))])
    reading = FULL if kind == "16" else PictureReading()
    with contextlib.suppress(BadInput):
        assert read_picture(path, upright=True, how=reading).ndim == 3
    with contextlib.suppress(BadInput):
        assert len(picture_size_hw(path, upright=True)) == 2
    with contextlib.suppress(BadInput):
        assert read_mask(path).ndim == 2


def png_chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def exif_chunk():
    exif = Image.Exif()
    exif[0x0112] = 6
    return png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


@pytest.mark.parametrize("where", ["before its pixels", "behind its pixels"])
def test_the_orientation_of_a_png_stands_before_or_behind_its_pixels(tmp_path, where):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT" if where == "before its pixels" else b"IEND") - 4
    path.write_bytes(content[:at] + exif_chunk() + content[at:])
    assert read_header(path).orientation == 6
    assert picture_size_hw(path, upright=True) == (30, 20)
    assert read_picture(path, upright=True).shape == (30, 20, 3)


def test_the_header_of_a_png_needs_no_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert read_header(tmp_path / "a.png").size_hw == (20, 30)
