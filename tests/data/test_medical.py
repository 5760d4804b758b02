"""DICOM and NIfTI: the values on the files' own scale, one frame or slice at a time."""

import numpy as np
import pytest

from wsss.data.lists import pictures_below
from wsss.data.pictures import picture_size_hw, read_header, read_picture
from wsss.data.samples import PictureReading
from wsss.data.value_range import ReadingRequest, choose_reading
from wsss.errors import BadInput

H, W = 24, 32


def dicom(path, values, *, meaning="MONOCHROME2", frames=1, **extra):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.dataset.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = H, W
    data.SamplesPerPixel = 3 if meaning == "RGB" else 1
    data.PhotometricInterpretation = meaning
    data.BitsAllocated = data.BitsStored = 8 * values.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    if meaning == "RGB":
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    for name, value in extra.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def ramp(dtype, low, high, shape=(H, W)):
    return np.linspace(low, high, int(np.prod(shape))).reshape(shape).astype(dtype)


def test_values_are_on_the_scale_of_the_file(tmp_path):
    stored = ramp(np.int16, 0, 4000)
    path = dicom(tmp_path / "a.dcm", stored, RescaleSlope="1", RescaleIntercept="-1024")
    assert picture_size_hw(path, upright=True) == (H, W)
    read = read_picture(path, upright=True, how=PictureReading((-160, 240), ("integer",)))
    expected = np.clip(np.rint((stored - 1024.0 + 160) / 400 * 255), 0, 255)
    np.testing.assert_array_equal(read[..., 1], expected)


def test_monochrome1_is_inverted(tmp_path):
    stored = ramp(np.uint16, 0, 4095)
    how = PictureReading((0, 4095), ("integer",))
    dark, bright = (
        read_picture(dicom(tmp_path / f"{meaning}.dcm", stored, meaning=meaning), upright=True, how=how)
        for meaning in ("MONOCHROME1", "MONOCHROME2")
    )
    np.testing.assert_array_equal(dark, 255 - bright)
    paths = [tmp_path / "MONOCHROME1.dcm"]
    assert "1 of 1 pictures say that small values are white; they are inverted" in choose_reading(paths, tmp_path)[1]


def test_colours_and_frames(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    path = dicom(tmp_path / "rgb.dcm", colours, meaning="RGB")
    np.testing.assert_array_equal(read_picture(path, upright=True), colours)
    stack = np.random.default_rng(0).integers(0, 256, (3, H, W), np.uint8)
    path = dicom(tmp_path / "stack.dcm", stack, frames=3)
    with pytest.raises(BadInput, match=r"found 3 pages .*--page N"):
        read_picture(path, upright=True)
    np.testing.assert_array_equal(read_picture(path, upright=True, how=PictureReading(page=2))[..., 0], stack[1])


def test_windows_are_said_and_not_used(tmp_path):
    paths = [
        dicom(
            tmp_path / f"{i}.dcm", ramp(np.int16, -1000, 3000), WindowCenter=["40", "50"], WindowWidth=["401", "1500"]
        )
        for i in range(2)
    ]
    reading, notes = choose_reading(paths, tmp_path)
    low, high = reading.value_range
    assert low < -900
    assert high > 2900
    assert any(
        "display window -160.5 to 239.5, which is not used; --value-range=-160.5,239.5" in note for note in notes
    )


def test_damaged_dicom(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp(np.uint16, 0, 4095))
    blob = path.read_bytes()
    path.write_bytes(blob[:-500])
    with pytest.raises(BadInput, match=r"a\.dcm: found "):
        read_picture(path, upright=True, how=PictureReading((0, 4095), ("integer",)))
    path.write_bytes(blob[:140])
    with pytest.raises(BadInput, match=r"a\.dcm: found "):
        read_picture(path, upright=True)
    palette = dicom(tmp_path / "b.dcm", ramp(np.uint8, 0, 255), meaning="PALETTE COLOR")
    with pytest.raises(BadInput, match="a DICOM file of PALETTE COLOR"):
        read_picture(palette, upright=True)


def nifti(path, values, slope=None):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(values, np.eye(4), dtype=values.dtype)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_slice_of_a_volume(tmp_path, name):
    volume = np.random.default_rng(0).integers(-1000, 3000, (W, H, 5)).astype(np.int16)
    path = nifti(tmp_path / name, volume)
    header = read_header(path)
    assert (header.size_hw, header.pages, header.kind) == ((H, W), 5, "integer")
    how = PictureReading((-1000, 3000), ("integer",))
    with pytest.raises(BadInput, match=r"found 5 pages .*--page N"):
        read_picture(path, upright=True, how=how)
    read = read_picture(path, upright=True, how=PictureReading((-1000, 3000), ("integer",), page=4))
    np.testing.assert_array_equal(read[..., 0], np.rint((volume[..., 3].T + 1000.0) / 4000 * 255))
    assert choose_reading([path], tmp_path, ReadingRequest(page=4))[0].kinds == ("integer",)


def test_one_slice_needs_no_page(tmp_path):
    flat = np.random.default_rng(0).random((W, H, 1)).astype(np.float32)
    path = nifti(tmp_path / "a.nii", flat)
    read = read_picture(path, upright=True, how=PictureReading((0, 1), ("float",)))
    np.testing.assert_array_equal(read[..., 0], np.rint(flat[..., 0].T * 255.0))


def test_volumes_in_time_and_damage_are_refused(tmp_path):
    with pytest.raises(BadInput, match="found 4 axes of 32, 24, 3, 2; expected a slice or a volume"):
        read_header(nifti(tmp_path / "a.nii", np.zeros((W, H, 3, 2), np.int16)))
    path = nifti(tmp_path / "b.nii.gz", np.zeros((W, H), np.int16))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadInput, match=r"b\.nii\.gz: found "):
        read_picture(path, upright=True, how=PictureReading((0, 1), ("integer",)))


def test_names_are_without_both_suffixes(tmp_path):
    for name in ("a.nii.gz", "b.nii", "c.dcm", "d.gz"):
        (tmp_path / name).touch()
    assert pictures_below(tmp_path) == {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.nii", "c": tmp_path / "c.dcm"}
