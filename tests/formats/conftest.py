"""Masks with their pictures, and what is exported and imported from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsss
from tests.peers import masks as hard
from wsss.data.files import read_mask


class Masks:
    """A folder of masks with their pictures.

    Attributes:
        root: the folder, with `masks`, `pictures` and `classes.txt`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.given = {"pictures": root / "pictures", "classes": str(root / "classes.txt")}

    def export(self, format: str, out: Path, **options: Any) -> Path:
        return wsss.export(format, self.root / "masks", out, **{**self.given, **options})

    def imported(self, format: str, file: Path, **options: Any) -> dict[str, np.ndarray]:
        """The corrected masks by name."""
        out = file.parent / f"{file.name} imported"
        wsss.import_masks(format, file, out, **{**self.given, **options})
        return {
            path.relative_to(out).with_suffix("").as_posix(): read_mask(path) for path in sorted(out.rglob("*.png"))
        }


@pytest.fixture(scope="session")
def hard_masks(tmp_path_factory: pytest.TempPathFactory) -> Masks:
    """Masks that are hard to keep, without unsure pixels."""
    root = tmp_path_factory.mktemp("hard")
    hard.write(root, unsure=False)
    return Masks(root)


@pytest.fixture(scope="session")
def unsure_masks(tmp_path_factory: pytest.TempPathFactory) -> Masks:
    """The same with unsure pixels."""
    root = tmp_path_factory.mktemp("unsure")
    hard.write(root, unsure=True)
    return Masks(root)


@pytest.fixture
def two(tmp_path: Path) -> Masks:
    """Two small pictures, `a` and `in/b`, of 4 rows and 6 columns: a cat with two parts and a dog; a cat alone."""
    root = tmp_path / "two"
    both = np.zeros((4, 6), np.uint8)
    both[0, :2] = both[3, 5] = 1
    both[1:3, 2:4] = 2
    for name, mask in (("a", both), ("in/b", (both == 1).astype(np.uint8))):
        for folder, suffix in (("masks", "png"), ("pictures", "jpg")):
            path = root / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    (root / "classes.txt").write_text("cat\ndog\n")
    return Masks(root)
