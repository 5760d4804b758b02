"""Every segmenter on two processes trains what one trains: weights, running statistics, EMANet's bases."""

import pickle
import subprocess
import sys

import pytest
import torch

from tests.conftest import tree, write_squares
from tests.end_to_end.conftest import ENVIRONMENT
from tests.segmenters.tiny import ALL, write_classifier, write_truths
from wsss.weights import BANK, WEIGHTS, read_weights

pytestmark = pytest.mark.slow


def test_two_processes(tmp_path):
    images = write_squares(tmp_path / "squares", 12)
    (tmp_path / "images").write_bytes(pickle.dumps(images))
    write_truths(images, tmp_path / "masks", known=False)
    write_classifier(tmp_path / "classifier")
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        words = [sys.executable, *start, "-m", "tests.segmenters.tiny", str(tmp_path)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in (*ALL, "frozen"):
        one, two = (read_weights(tmp_path / count / name / WEIGHTS)[0] for count in "12")
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert (name == "frozen" and key.startswith("features.")) or value.dtype != torch.float32
            # 5e-15 measured. The bias of keys changes no attention, so its gradient is 0 but for rounding, which AdamW divides by its own
            # size: 1.4e-12
            atol = 1e-10 if key.endswith("in_proj_bias") else 1e-12
            torch.testing.assert_close(two[key], value, rtol=0, atol=atol, msg=f"{name} {key}")
    one, two = ((tmp_path / count / "retrieval" / BANK).read_bytes() for count in "12")
    assert one == two
    assert tree(tmp_path / "1" / "frozen" / "tokens") == tree(tmp_path / "2" / "frozen" / "tokens")
    # bases that were moved are shorter than 1
    assert one_bases(tmp_path).norm(dim=1).max() < 0.95


def one_bases(folder):
    return read_weights(folder / "1" / "emanet" / WEIGHTS)[0]["emau.mu"]
