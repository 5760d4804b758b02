"""The range of values is decided once for a data set, and said; doubtful data sets are a question."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import write_picture
from tests.parity import inputs
from wsss.cli import main
from wsss.data.open import open_dataset
from wsss.data.pictures import read_picture
from wsss.data.samples import DEFAULT_READING, PictureReading
from wsss.data.value_range import ReadingRequest, choose_reading
from wsss.errors import BadInput

tifffile = pytest.importorskip("tifffile")


def ramp(low, high, dtype, seed=0, bands=0):
    """Values from low to high, both of them included."""
    shape = (24, 32, bands) if bands else (24, 32)
    values = np.random.default_rng(seed).uniform(low, high, shape)
    values.flat[0], values.flat[1] = low, high
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def write(folder, arrays, **options):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.tif" for i in range(len(arrays))]
    for path, values in zip(paths, arrays, strict=True):
        tifffile.imwrite(path, values, **{"photometric": "minisblack", "metadata": None, **options})
    return paths


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 255, "uint16", (0, 255)),
        (0, 1023, "uint16", (0, 1023)),
        (7, 4090, "uint16", (0, 4095)),
        (0, 16383, "uint16", (0, 16383)),
        (0, 65535, "uint16", (0, 65535)),
        (0, 4095, "int16", (0, 4095)),
        (0, 4095, "uint32", (0, 4095)),
        (-128, 127, "int8", (-128, 127)),
        (0, 1, "float32", (0, 1)),
        (0.01, 0.98, "float64", (0, 1)),
        (-0.02, 1.03, "float32", (0, 1)),
        (-1, 1, "float32", (-1, 1)),
        (0, 255, "float32", None),
        (-1000, 3000, "int16", None),
        (20000, 24000, "uint16", None),
        (260.0, 310.0, "float32", None),
        (0, 0.01, "float32", None),
    ],
)
def test_ranges(tmp_path, low, high, dtype, expected):
    reading, notes = choose_reading(write(tmp_path, [ramp(low, high, dtype, seed) for seed in range(4)]), tmp_path)
    assert reading.kinds == (("float",) if dtype.startswith("f") else ("integer",))
    found_low, found_high = reading.value_range
    if expected:
        assert (found_low, found_high) == expected
        assert reading.strict
    else:  # percentiles: nearly all of it, and no more
        span = high - low
        assert low <= found_low <= low + 0.02 * span
        assert high - 0.02 * span <= found_high <= high + 0.01 * span
        assert not reading.strict
    assert notes[0].startswith(
        f"TIFF of {dtype} with 1 band: values {found_low:g} to {found_high:g} become black to white"
    )
    assert "--value-range LOW,HIGH" in notes[0]


def test_whole_floats_are_like_integers(tmp_path):
    paths = write(tmp_path, [np.rint(ramp(0, 255, "float32", seed)) for seed in range(3)])
    assert choose_reading(paths, tmp_path)[0].value_range == (0, 255)


def test_few_outliers_do_not_darken_everything(tmp_path):
    arrays = [ramp(0, 30, "uint16", seed) for seed in range(3)]
    arrays[1][5, 5] = 60000
    reading, _ = choose_reading(write(tmp_path, arrays), tmp_path)
    assert reading.value_range == (0, 30)


def test_one_brightness_for_one_series(tmp_path):
    # one picture's own maximum is 255, the next one's is 256
    paths = write(tmp_path, [ramp(0, most, "uint16") for most in (255, 256, 4095)])
    reading, _ = choose_reading(paths, tmp_path)
    means = [read_picture(path, upright=True, how=reading).mean() for path in paths]
    assert means[0] == pytest.approx(means[1], rel=0.02)
    assert means[0] < means[2] / 10


def test_ordinary_pictures_stay_as_they_are(tmp_path):
    paths = [write_picture(tmp_path / name) for name in ("a.jpg", "b.png", "c.tif", "d.bmp")]
    assert choose_reading(paths, tmp_path) == (DEFAULT_READING, [])
    assert choose_reading([], tmp_path) == (DEFAULT_READING, [])


def test_bad_files_do_not_decide(tmp_path):
    paths = write(tmp_path, [ramp(0, 4095, "uint16")] * 3)
    paths[1].write_bytes(b"")
    (tmp_path / "x.png").write_text("no picture")
    reading, _ = choose_reading([*paths, tmp_path / "x.png", tmp_path / "missing.png"], tmp_path)
    assert reading.value_range == (0, 4095)


def test_pictures_of_8_bits_among_others_are_a_question(tmp_path):
    paths = [*write(tmp_path, [ramp(0, 4095, "uint16")] * 3), write_picture(tmp_path / "a.jpg")]
    with pytest.raises(
        BadInput, match=r"of different kinds: 1 of 8-bit samples .*a\.jpg.*; 3 of integer samples .*--value-range"
    ):
        choose_reading(paths, tmp_path)
    with pytest.raises(
        BadInput, match=r"a\.jpg: found an 8-bit picture .*, whose values end at 255; expected values 0 to 4095"
    ):
        choose_reading(paths, tmp_path, ReadingRequest((0, 4095)))
    reading, notes = choose_reading(paths, tmp_path, ReadingRequest((0, 255)))
    assert reading == PictureReading((0, 255), ("8-bit", "integer"))
    assert "(--value-range)" in notes[0]


def test_the_users_range_comes_first(tmp_path):
    paths = write(tmp_path, [ramp(-1000, 3000, "int16")] * 2)
    reading, _ = choose_reading(paths, tmp_path, ReadingRequest((-160, 240)))
    assert reading == PictureReading((-160, 240), ("integer",))
    read = read_picture(paths[0], upright=True, how=reading)
    expected = np.clip(np.rint((ramp(-1000, 3000, "int16") + 160.0) / 400 * 255), 0, 255)
    np.testing.assert_array_equal(read[..., 0], expected)


def test_missing_values_are_left_out_and_said(tmp_path):
    arrays = [ramp(0, 1, "float32", seed) for seed in range(4)]
    arrays[0][:5] = np.nan
    arrays[1][:5] = -9999
    paths = write(tmp_path, arrays, extratags=[(42113, "s", 0, "-9999", True)])
    reading, notes = choose_reading(paths, tmp_path)
    assert reading.value_range == (0, 1)
    assert "2 of 4 pictures have pixels without a value, which become black" in notes
    assert (read_picture(paths[1], upright=True, how=reading)[:5] == 0).all()


def test_pages_are_a_question(tmp_path):
    paths = write(tmp_path, [np.stack([ramp(0, 4095, "uint16", seed) for seed in range(5)])] * 3)
    with pytest.raises(BadInput, match=r"5 pages .* in .*0\.tif, one of 3 such pictures of 3 examined; .*--page N"):
        choose_reading(paths, tmp_path)
    reading, _ = choose_reading(paths, tmp_path, ReadingRequest(page=2))
    assert (reading.page, reading.value_range) == (2, (0, 4095))


def test_one_of_several_pages_among_good_ones_is_a_bad_file(tmp_path):
    paths = write(tmp_path / "a", [ramp(0, 4095, "uint16")] * 3)
    paths += write(tmp_path / "b", [np.stack([ramp(0, 4095, "uint16")] * 2)])
    reading, _ = choose_reading(paths, tmp_path)
    with pytest.raises(BadInput, match="2 pages"):
        read_picture(paths[-1], upright=True, how=reading)


def test_bands_are_a_question_or_said(tmp_path):
    paths = write(tmp_path / "five", [ramp(0, 4095, "uint16", bands=5)] * 2, planarconfig="contig")
    with pytest.raises(
        BadInput, match=r"uint16 with 5 bands, which does not say which .*one of 2 such pictures of 2.*--bands"
    ):
        choose_reading(paths, tmp_path)
    reading, notes = choose_reading(paths, tmp_path, ReadingRequest(bands=(4, 3, 2)))
    assert reading.bands == (4, 3, 2)
    assert "bands: red is band 4, green is band 3, blue is band 2" in notes
    three = write(tmp_path / "three", [ramp(0, 4095, "uint16", bands=3)] * 2, planarconfig="contig")
    assert any(
        "do not say what their 3 bands are; they are used as red, green, blue" in note
        for note in choose_reading(three, tmp_path)[1]
    )
    more = write(tmp_path / "more", [ramp(0, 255, "uint8", bands=6)] * 2, photometric="rgb", extrasamples=[0, 0, 0])
    assert any(
        "have 6 bands; the colours are the first 3, and the other 3 are not used" in note
        for note in choose_reading(more, tmp_path)[1]
    )


@pytest.mark.parametrize(("dtype", "high"), [("uint8", 255), ("uint16", 65535)])
def test_near_infrared_that_a_file_calls_alpha_is_a_question(tmp_path, dtype, high):
    bands = ramp(0, high, dtype, bands=4)
    paths = write(tmp_path / "nir", [bands] * 3, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(
        BadInput,
        match=r"fourth band that the files call alpha although it looks like an ordinary band .*`--bands 1,2,3`",
    ):
        choose_reading(paths, tmp_path)
    assert choose_reading(paths, tmp_path, ReadingRequest(bands=(1, 2, 3)))[0].bands == (1, 2, 3)
    bands[..., 3] = np.where(bands[..., 3] > high // 2, high, 0)
    paths = write(tmp_path / "alpha", [bands] * 3, photometric="rgb", extrasamples=["unassalpha"])
    assert choose_reading(paths, tmp_path)[0].bands == ()


def test_inverted_and_animated_pictures_are_said(tmp_path):
    paths = write(tmp_path, [ramp(0, 4095, "uint16")] * 2, photometric="miniswhite")
    assert "2 of 2 pictures say that small values are white; they are inverted" in choose_reading(paths, tmp_path)[1]
    frames = [Image.fromarray(inputs.image(20, 20, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    plain = write_picture(tmp_path / "b.png")
    reading, notes = choose_reading([tmp_path / "a.gif", plain], tmp_path)
    assert reading == DEFAULT_READING
    assert notes == [
        "1 of 2 pictures examined are animated (a.gif first): their first frame is read; --page chooses another"
    ]


def test_a_network_s_range_is_taken_for_new_pictures(tmp_path):
    trained = PictureReading((0, 4095), ("integer",), strict=True)
    paths = write(tmp_path / "a", [ramp(0, 900, "uint16")] * 2)
    assert choose_reading(paths, tmp_path, trained=trained) == (trained, [])
    with pytest.raises(BadInput, match=r"JPEG of uint8 .*expected integer samples, values 0 to 4095"):
        choose_reading([write_picture(tmp_path / "a.jpg")], tmp_path, trained=trained)
    with pytest.raises(BadInput, match=r"TIFF of uint16 .*expected 8-bit pictures"):
        choose_reading(paths, tmp_path, trained=DEFAULT_READING)
    assert choose_reading(paths, tmp_path, ReadingRequest((0, 255)), trained)[0] == PictureReading(
        (0, 255), ("integer",)
    )


@pytest.mark.parametrize(
    ("value_range", "bands", "page", "message"),
    [
        ("1", None, None, r"--value-range: found 1 numbers; expected LOW,HIGH"),
        ("a,b", None, None, r"--value-range: found 'a,b'"),
        ("5,5", None, None, r"--value-range: found 5 to 5; expected a smaller and a larger number"),
        ("0,inf", None, None, "--value-range: found 0 to inf"),
        (None, "1,2", None, r"--bands: found 2 numbers; expected numbers of bands"),
        (None, "1.5", None, r"--bands: found 1.5"),
        (None, "0,1,2", None, r"--bands: found 0; expected numbers from 1"),
        (None, None, 0, r"--page: found 0; expected numbers from 1"),
    ],
)
def test_settings_that_make_no_sense(value_range, bands, page, message):
    with pytest.raises(BadInput, match=message):
        ReadingRequest.of(value_range, bands, page)


def test_settings_as_typed_and_as_lists():
    assert (
        ReadingRequest.of("-1, 1", "4, 3,2", 2)
        == ReadingRequest.of([-1, 1], [4, 3, 2], 2)
        == ReadingRequest((-1, 1), (4, 3, 2), 2)
    )


@given(
    st.tuples(
        st.none() | st.tuples(st.floats(-1e9, 0), st.floats(1, 1e9)),
        st.sampled_from([("8-bit",), ("integer",), ("float", "integer")]),
        st.booleans(),
        st.sampled_from([(), (1,), (4, 3, 2)]),
        st.none() | st.integers(1, 99),
    )
)
def test_readings_survive_json(values):
    reading = PictureReading(*values)
    assert PictureReading.of(reading.plain()) == reading


@pytest.mark.parametrize(
    "values",
    [
        {"value_range": [1]},
        {"kinds": ["8-bit"], "bands": ["1"]},
        {"kinds": ["x"], "bands": []},
        {"value_range": [2, 1], "kinds": [], "bands": []},
        {"value_range": 3, "kinds": [], "bands": []},
        {"kinds": [], "bands": [], "page": "a"},
    ],
)
def test_other_json_is_refused(values):
    with pytest.raises(ValueError, match="not a picture reading"):
        PictureReading.of(values)


@pytest.mark.parametrize("kind", ["folders", "tags"])
def test_a_data_set_is_read_alike(tmp_path, kind):
    for split, most in (("train", 4095), ("val", 900)):
        write(tmp_path / split / "cat", [ramp(0, most, "uint16", seed) for seed in range(3)])
        write(tmp_path / split / "dog", [ramp(0, most, "uint16", seed) for seed in range(3)])
    if kind == "tags":
        rows = [
            f"{split}/{tag}/{i}.tif,{tag},{split}"
            for split in ("train", "val")
            for tag in ("cat", "dog")
            for i in range(3)
        ]
        (tmp_path / "tags.csv").write_text("\n".join(["image,tags,split", *rows]))
    data = open_dataset(tmp_path)
    assert data.kind == kind
    assert {images.reading for images in data.splits.values()} == {PictureReading((0, 4095), ("integer",), strict=True)}
    assert any("values 0 to 4095 become black to white (12 bits" in note for note in data.notes)
    assert data.split("val").read(0).max() == round(900 / 4095 * 255)
    asked = open_dataset(tmp_path, value_range="0,900")
    assert asked.split("val").read(0).max() == 255
    assert asked.split("val").fingerprint() != data.split("val").fingerprint()
    assert data.split("train").subset([0]).reading == data.split("train").reading


def test_pictures_that_are_not_read_are_named(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg"):
        write_picture(tmp_path / name)
    for name in ("cat/2.HEIC", "dog/2.heic", "dog/3.jxl"):
        (tmp_path / name).write_bytes(b"x")
    notes = open_dataset(tmp_path).notes
    assert "2 .heic files are not read: convert them to JPEG or PNG first" in notes
    assert "1 .jxl file is not read: convert them to JPEG or PNG first" in notes
    for path in tmp_path.glob("*/1.jpg"):
        path.unlink()
    with pytest.raises(BadInput, match=r"found no picture in a supported format; 2 \.heic files are not read: convert"):
        open_dataset(tmp_path)


def test_ordinary_data_sets_have_no_reading_of_their_own(tmp_path):
    for name in ("cat/1.jpg", "dog/1.png"):
        write_picture(tmp_path / name)
    images = open_dataset(tmp_path).split("train")
    assert images.reading == DEFAULT_READING
    assert dataclasses.replace(images, reading=DEFAULT_READING).fingerprint() == images.fingerprint()


def test_the_command_line_says_what_becomes_black_and_white(tmp_path, capsys):
    for tag in ("cat", "dog"):
        write(tmp_path / tag, [ramp(0, 4095, "uint16", bands=4)] * 2, planarconfig="contig")
    assert main(["data", "info", str(tmp_path)]) == 2
    assert "uint16 with 4 bands, which does not say which bands are colours" in capsys.readouterr().err
    assert main(["data", "info", str(tmp_path), "--bands", "4,3,2", "--value-range", "0,900"]) == 0
    said = capsys.readouterr().out
    assert "TIFF of uint16 with 4 bands: values 0 to 900 become black to white (--value-range)" in said
    assert "bands: red is band 4, green is band 3, blue is band 2" in said
    assert main(["data", "info", str(tmp_path), "--bands", "5,3,2"]) == 2
    assert "expected band 5 (--bands)" in capsys.readouterr().err
