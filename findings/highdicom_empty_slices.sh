#!/usr/bin/env bash
# Expected: a DICOM segmentation made of five slices holds five frames, in their order. Seen: highdicom leaves out empty slices and sorts by class, then place, here from the last slice; pydicom and SimpleITK hand over just these.
# For a user: frame k is not the mask of slice k, so masks are paired with the wrong pictures and classes share one value; omit_empty_frames=False keeps the order, so match frames by the slice that each names, as highdicom's reader does.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'highdicom==0.28.2' 'pydicom==3.0.2' 'simpleitk==2.5.7' 'pillow==13.0.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import copy

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

print("highdicom", highdicom.__version__, "pydicom", pydicom.__version__, "SimpleITK", SimpleITK.__version__)
slices = [copy.deepcopy(pydicom.dcmread(get_testdata_file("CT_small.dcm"))) for _ in range(5)]
for number, one in enumerate(slices):
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    one.InstanceNumber, one.ImagePositionPatient, one.ImageOrientationPatient = number + 1, [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
labels = np.zeros((5, 128, 128), np.uint8)
labels[1, :4, :100], labels[3, :1, :100], labels[0, 9, :50] = 1, 1, 2
tissue = {"segmented_property_category": codes.SCT.Tissue, "segmented_property_type": codes.SCT.ConnectiveTissue}
segments = [
    highdicom.seg.SegmentDescription(segment_number=k, segment_label=name, algorithm_type="MANUAL", **tissue)
    for k, name in ((1, "one"), (2, "two"))
]
device = ("manufacturer", "manufacturer_model_name", "software_versions", "device_serial_number")
common = {"source_images": slices, "pixel_array": labels, "segmentation_type": "BINARY", "segment_descriptions": segments}
common |= {"series_number": 1, "instance_number": 1, "series_instance_uid": generate_uid()} | dict.fromkeys(device, "1")
pixels = {}
for omit in (True, False):
    options = {} if omit else {"omit_empty_frames": False}
    highdicom.seg.Segmentation(sop_instance_uid=generate_uid(), **common, **options).save_as("masks.dcm")
    frames = pydicom.dcmread("masks.dcm").pixel_array
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("masks.dcm")) > 0
    assert np.array_equal(frames > 0, itk)
    pixels[omit] = [int(frame.sum()) for frame in frames]
    print("default:" if omit else "omit_empty_frames=False:", pixels[omit], "values", np.unique(frames).tolist())
print("pixels per slice: class 1", (labels == 1).sum((1, 2)).tolist(), "class 2", (labels == 2).sum((1, 2)).tolist())
assert pixels == {True: [100, 400, 50], False: [0, 100, 0, 400, 0, 0, 0, 0, 0, 50]}
print("as described")
PY
