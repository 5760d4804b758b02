#!/usr/bin/env bash
# Expected: whole numbers stay whole in NIfTI. Seen: labels as float64 (what get_fdata gives) saved with the header of a uint8 mask are stretched over 0..255 and come back as 2.98 for 3; astype(int) makes it 2.
# For a user: load a mask, edit it, save it with its own header, and every odd class of a mask with classes 0 to 10 becomes the even one below it; cast to the header's type before saving.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'nibabel==5.4.2' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import nibabel
import numpy as np

print("nibabel", nibabel.__version__, "numpy", np.__version__)
labels = np.arange(11, dtype=np.uint8).reshape(1, 1, 11)
nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), "mask.nii.gz")
first = nibabel.load("mask.nii.gz")
assert np.array_equal(first.get_fdata(), labels) and first.get_data_dtype() == np.uint8

edited = first.get_fdata()  # float64, whole numbers
nibabel.save(nibabel.Nifti1Image(edited, first.affine, first.header), "edited.nii.gz")
second = nibabel.load("edited.nii.gz")
values = second.get_fdata().ravel()
print("stored as", second.get_data_dtype(), second.dataobj.get_unscaled().ravel().tolist())
print("read back", values.round(3).tolist())
print("as int   ", values.astype(int).tolist())
assert second.get_data_dtype() == np.uint8
assert values.astype(int).tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10]

whole = nibabel.Nifti1Image(edited.astype(np.uint8), first.affine, first.header)
nibabel.save(whole, "cast.nii.gz")
assert np.array_equal(nibabel.load("cast.nii.gz").get_fdata(), labels)
print("as described")
PY
