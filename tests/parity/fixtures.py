"""The stored outputs of published code: opened here only, so that each array that no test looks at is noticed.

`tests/parity/looked_at.py` judges what is noted here when the tests have run.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
# files under DATA, with the arrays that a running test has read; WHOLE where the file is no archive of arrays
looked_at: dict[str, set[str]] = {}
WHOLE = "the file"


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one .npz file. Reading one while a test runs notes it; names alone, or a look at import, do not."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}.npz"

    @functools.cached_property
    def _file(self) -> Any:
        return np.load(DATA / self._name, allow_pickle=False)

    def __getitem__(self, key: str) -> np.ndarray:
        if "PYTEST_CURRENT_TEST" in os.environ:
            looked_at.setdefault(self._name, set()).add(key)
        return self._file[key]

    def __contains__(self, key: object) -> bool:
        return key in self._file.files

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


def arrays(name: str) -> Arrays:
    """The arrays of `name`.npz, a path under DATA that starts with its family's folder."""
    return Arrays(name)


def path(name: str) -> Path:
    """A file of another kind, which counts as looked at."""
    looked_at.setdefault(name, set()).add(WHOLE)
    return DATA / name


def table(name: str) -> Any:
    """What a JSON file holds."""
    return json.loads(path(name).read_text())
