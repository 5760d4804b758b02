"""Small pictures for tests of the stages: coloured squares on grey noise, with true masks."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from PIL import Image

from tests import typechecker

# A slip of a reader is an error here, and does not hide behind the file that it reads; processes that tests start inherit this
os.environ["WSSS_STRICT"] = "1"
# nothing that a test remembers is found by another run of the tests
_CACHE = tempfile.TemporaryDirectory(prefix="wsss-tests-")
os.environ["WSSS_CACHE"] = _CACHE.name
pytest_plugins = ["tests.parity.looked_at"]
# how long an example takes says nothing on a machine that is busy
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Types and shapes in signatures are checked while the tests run; not in ops, which numba compiles and which answers
# wrong ones itself
install_import_hook(["wsss.data", "wsss.methods", "wsss.networks", "wsss.refiners"], f"{typechecker.__name__}.check")

from wsss.data.files import write_mask  # noqa: E402
from wsss.data.images import Images, MaskFile  # noqa: E402
from wsss.run import stage  # noqa: E402
from wsss.stages.checkpoint import CHECKPOINT  # noqa: E402

COLOURS = ((220, 40, 40), (40, 60, 220))
# folders whose tests are all `whole`: they go through several stages, or compare whole networks with stored outputs
WHOLE = ("end_to_end", "parity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in WHOLE:
            item.add_marker("whole")


def write_squares(folder: Path, count: int, size: int = 32, seed: int = 0) -> Images:
    """`count` pictures of red and blue squares; the first class is in every picture whose number is even."""
    rng = np.random.default_rng(seed)
    names, paths, masks, labels = [], [], [], np.zeros((count, 2), bool)
    for index in range(count):
        picture = rng.integers(90, 150, (size, size + 4, 3)).astype(np.uint8)
        mask = np.zeros((size, size + 4), np.uint8)
        present = {index % 2, int(rng.integers(2))}
        for kind in sorted(present):
            side = int(rng.integers(size // 4, size // 2))
            top, left = (int(v) for v in rng.integers(0, size - side, 2))
            picture[top : top + side, left : left + side] = COLOURS[kind]
            mask[top : top + side, left : left + side] = kind + 1
        labels[index] = [label in mask for label in (1, 2)]
        # a sub-folder, a space and a letter outside ASCII, as people's names have
        name = f"teil {index % 2}/bild_{index}ß"
        path = folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        write_mask(folder / "truth" / f"{name}.png", mask)
        names.append(name)
        paths.append(path)
        masks.append(MaskFile(folder / "truth" / f"{name}.png"))
    return Images("squares", tuple(names), tuple(paths), ("red", "blue"), labels, tuple(masks))


@pytest.fixture
def squares(tmp_path):
    """Twelve pictures of 32x36."""
    return write_squares(tmp_path / "squares", 12)


@pytest.fixture(scope="module")
def masked_squares(tmp_path_factory):
    """Twelve pictures of squares, and the folder of a stage with their masks."""
    from tests.segmenters.tiny import write_truths  # which imports all segmenters

    folder = tmp_path_factory.mktemp("masked squares")
    images = write_squares(folder / "pictures", 12)
    return images, finished(write_truths(images, folder / "masks"))


@pytest.fixture(scope="module")
def one_torch_thread():
    """Small tensors are slower in several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sizes_may_be_symbols():
    """While a graph is recorded, sizes are symbols, which are not of the types in signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def finished(folder: Path) -> Path:
    """The folder as a stage leaves it that wrote what is in it."""
    made = folder.rename(folder.with_name(f"{folder.name} made"))

    makes = "maps" if any(made.rglob("*.npz")) else "masks"

    @stage(kind="copy", makes=makes, title="a copy")
    def copied(*, out):
        shutil.copytree(made, out, dirs_exist_ok=True)
        return {}

    copied(out=folder)
    shutil.rmtree(made)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder but the clocks, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "seconds.json"
    }


def check_a_stop(trained: Callable[[Path], object], folder: Path, learning: type, updates: int) -> None:
    """What is trained into a folder is the same, byte for byte, where the training stops after a number of updates and goes on.

    Args:
        trained: trains into the folder that it is given.
        folder: for `whole`, without a stop, and for `killed`.
        learning: the class whose forward pass makes an update.
        updates: before the stop; a checkpoint has to be there by then.
    """
    trained(folder / "whole")
    made, forward = [], learning.forward

    def killed(self, batch):
        made.append(1)
        if len(made) > updates:
            raise KeyboardInterrupt
        return forward(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(folder / "killed")
    assert (folder / "killed" / CHECKPOINT).exists()
    trained(folder / "killed")
    assert tree(folder / "killed") == tree(folder / "whole")
