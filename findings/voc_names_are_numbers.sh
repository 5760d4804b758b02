#!/usr/bin/env bash
# Expected: 2007_000032, a picture's name in PASCAL VOC, is read as a text. Seen: PyYAML, OmegaConf, numpy.genfromtxt and Fire take the underscore for a digit separator and give the number 2007000032.
# For a user: names in an unquoted YAML list, in VOC's own ImageSets/Main/CLASS_train.txt or on a command line match no file and no key, so every picture drops out of a split; quote them, or ask for dtype=str.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pyyaml==6.0.4' 'omegaconf==2.4.0' 'fire==0.7.1' 'termcolor==3.3.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
from importlib.metadata import version
from pathlib import Path

import fire
import numpy as np
import yaml
from omegaconf import OmegaConf

print(*(f"{name} {version(name)}" for name in ("pyyaml", "omegaconf", "numpy", "fire")))
listed = "val: [2007_000032, 2008_000001]"
Path("aeroplane_val.txt").write_text("2007_000032  1\n2008_000001 -1\n")
read = {
    "PyYAML": yaml.safe_load(listed)["val"],
    "OmegaConf": list(OmegaConf.create(listed).val),
    "genfromtxt": np.genfromtxt("aeroplane_val.txt", dtype=None)[:, 0].tolist(),
    "Fire": fire.Fire(lambda *names: list(names), command=["2007_000032", "2008_000001"]),
}
pictures = {"2007_000032", "2008_000001"}
for tool, names in read.items():
    print(f"{tool}: {names}; found among the pictures: {len(pictures & {str(name) for name in names})} of 2")
    assert names == [2007000032, 2008000001], tool
assert np.genfromtxt("aeroplane_val.txt", dtype=str)[:, 0].tolist() == sorted(pictures)
assert yaml.safe_load("['2007_000032']") == ["2007_000032"]
print("as described")
PY
