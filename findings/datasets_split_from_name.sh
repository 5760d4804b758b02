#!/usr/bin/env bash
# Expected: an imagefolder whose metadata.csv lists three pictures loads three pictures. Seen: if one of them is called test_tube_3.png, only that one is loaded, as the split `test`; the other two are gone, without a warning. A folder `val` among folders of pictures does the same.
# For a user: one picture with the word test, val, dev, eval or train in its name decides what the whole data set is. Put all pictures into a folder `train`, and name it in the header of README.md (configs, data_files), which stops the guessing.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'datasets==5.2.0' 'pillow==13.0.0'
cd "$venv"
HF_HOME="$venv/home" HF_DATASETS_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$venv/bin/python" - <<'PY'
import warnings
from importlib.metadata import version
from pathlib import Path

import datasets
from PIL import Image

print("datasets", version("datasets"))
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '**'\n---\n"


def loaded(root: Path, names: list[str], card: str = "") -> dict[str, int]:
    """The number of pictures by split."""
    for name in names:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)
    (root / "metadata.csv").write_text("file_name,tags\n" + "".join(f"{name}.png,glass\n" for name in names))
    if card:
        (root / "README.md").write_text(card)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        splits = datasets.load_dataset(str(root)) if card else datasets.load_dataset("imagefolder", data_dir=str(root))
    found = {name: len(split) for name, split in splits.items()}
    about = [str(one.message) for one in said if not issubclass(one.category, (ResourceWarning, DeprecationWarning))]
    print(f"{names}{' with a card' * bool(card)}: {found}, warnings {about}")
    assert not about
    return found


plain = loaded(Path("plain"), ["tube_1", "tube_2", "tube_3"])
named = loaded(Path("named"), ["tube_1", "tube_2", "test_tube_3"])
folder = loaded(Path("folder"), ["a/1", "b/2", "val/3"])
carded = loaded(Path("carded"), ["tube_1", "tube_2", "test_tube_3"], CARD)
assert (plain, named, folder, carded) == ({"train": 3}, {"test": 1}, {"validation": 1}, {"train": 3})
print("as described")
PY
