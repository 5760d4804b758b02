#!/usr/bin/env bash
# Expected: an array that is saved comes back with the same values. Seen: safetensors.numpy writes a transposed or Fortran-ordered array in the order it has in memory, under the shape it shows.
# For a user: maps or embeddings stored after a transpose (height, width, class to class, height, width) load without an error and are scrambled; call numpy.ascontiguousarray first.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'safetensors==0.8.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__, "numpy", np.__version__)
values = np.arange(6, dtype=np.float32).reshape(2, 3)
maps = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
arrays = {
    "contiguous": values,
    "transposed": values.T,
    "fortran": np.asfortranarray(values),
    "maps": maps.transpose(2, 0, 1),
}
save_file(arrays, "arrays.safetensors")
loaded = load_file("arrays.safetensors")
for name, array in arrays.items():
    print(f"{name:10} same shape {loaded[name].shape == array.shape}, same values {np.array_equal(loaded[name], array)}")
print("transposed, saved ", values.T.tolist())
print("transposed, loaded", loaded["transposed"].tolist())
assert all(loaded[name].shape == array.shape for name, array in arrays.items())
assert [name for name, array in arrays.items() if np.array_equal(loaded[name], array)] == ["contiguous"]
save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, "copies.safetensors")
copies = load_file("copies.safetensors")
assert all(np.array_equal(copies[name], array) for name, array in arrays.items())
print("as described")
PY
