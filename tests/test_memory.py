"""The memory budget: sizes, control groups, admission of pictures, and maps that are computed tile by tile."""

import dataclasses
import re
import threading
import time
from collections import namedtuple
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tests.conftest import finished
from tests.stages.test_refine import write_maps
from wsss import memory
from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.cli import main
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.networks import receptive
from wsss.networks.inference import for_inference
from wsss.networks.irnet import IRNet
from wsss.networks.receptive import Passes, bytes_per_pixel, reach, tiled
from wsss.networks.winograd import Winograd
from wsss.refiners.crf import CRFSettings, refine
from wsss.refiners.irnet import IRNetWalk, walk_needs
from wsss.run import read_record
from wsss.stages import localize
from wsss.stages.each import as_loaded, for_each_picture
from wsss.stages.thresholds import THRESHOLDS, choose_thresholds

GB = 2**30

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def default_budget():
    yield
    memory.choose(None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * GB), ("8", 8 * GB), (" 1.5 gib ", 3 * GB // 2), ("500MB", 500 * 2**20), ("1T", 2**40)],
)
def test_sizes(text, size):
    assert memory.parsed(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "much", "8 KB", "GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInput, match=r"--memory: found .* a size such as 8GB"):
        memory.parsed(text)


def group(folder, version, limit, usage, cached=0):
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, usage), strict=False):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"cache 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("version", "membership"), [(1, "4:cpu,memory:/job/step\n3:cpu:/x\n"), (2, "0::/job/step\n")], ids=["v1", "v2"]
)
def test_limits_of_control_groups(version, membership, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "available")(16 * GB))
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(membership)
    root = tmp_path / "fs" / "memory" if version == 1 else tmp_path / "fs"
    assert memory.free() == 16 * GB
    group(root / "job" / "step", version, 2**63 - 4096 if version == 1 else "max", GB)
    assert memory.free() == 16 * GB
    group(root / "job", version, 6 * GB, 5 * GB, cached=GB)
    assert memory.free() == 2 * GB
    memory.choose(None)
    assert memory.budget() == GB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    memory.choose(None)
    assert memory.budget() == GB // 2
    memory.choose("3GB")
    assert memory.budget() == 3 * GB


def test_tasks_begin_in_order_and_within_the_budget():
    memory.choose("10MB")
    admission, lock, running, highest, order = memory.Admission(), threading.Lock(), [0], [0], []
    sizes = [2**20 * size for size in (4, 4, 4, 30, 1, 9, 2, 8, 3, 3, 3, 3)]

    def task(number):
        needed = admission.begin(number, lambda: sizes[number])
        with lock:
            order.append(number)
            running[0] += needed
            highest[0] = max(highest[0], running[0] if running[0] != 30 * 2**20 else 0)
        time.sleep(0.002)
        with lock:
            running[0] -= needed
        admission.end(needed)

    threads = [threading.Thread(target=task, args=(number,)) for number in reversed(range(len(sizes)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert order == list(range(len(sizes)))
    assert 2**23 <= highest[0] <= 10 * 2**20


def test_waiting_tasks_are_cancelled():
    admission, ended = memory.Admission(), []

    def task():
        with pytest.raises(memory.Cancelled):
            admission.begin(1, lambda: 1)
        ended.append(True)

    thread = threading.Thread(target=task)
    thread.start()
    admission.close()
    thread.join(timeout=20)
    assert ended


def test_a_task_that_cannot_begin_ends_those_that_wait_for_it():
    admission, ended = memory.Admission(), []

    def failing():
        time.sleep(0.02)
        raise BadInput("a picture", "too large", "less", "Shrink it.")

    def task(number, size, error):
        with pytest.raises(error):
            admission.begin(number, size)
        ended.append(number)

    threads = [
        threading.Thread(target=task, args=(2, lambda: 1, memory.Cancelled)),
        threading.Thread(target=task, args=(1, failing, BadInput)),
    ]
    for thread in threads:
        thread.start()
    assert admission.begin(0, lambda: 1) == 1
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize("fails", ["load", "write"])
def test_an_error_ends_pictures_that_wait_for_memory(fails, tmp_path, squares):
    """One picture at a time fits; the error of the first one would otherwise leave the others waiting for its memory."""
    memory.choose("1MB")

    def fail(*_):
        raise BadInput("a picture", "damaged", "another", "Restore it.")

    steps = {"load": lambda index: index, "write": lambda path, made: None, fails: fail}
    with pytest.raises(BadInput, match="damaged"):
        for_each_picture(
            squares, tmp_path, ".png", steps["load"], as_loaded, steps["write"], title="", needs=lambda index: 2**20
        )


def test_a_picture_that_does_not_fit_stops_the_stage(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    cams = finished(tmp_path / "cams")
    memory.choose("0.0001GB")
    with pytest.raises(BadInput, match=r"found a picture of \d+x\d+ pixels, which takes about") as error:
        refine(CRFSettings(threshold=0.3), squares, cams=cams, out=tmp_path / "masks")
    assert error.value.where == squares.where(0)
    assert error.value.expected == "at most 105 KB"
    # the advice is enough
    memory.choose(re.search(r"Set --memory to (\S+) ", error.value.do)[1])
    refine(CRFSettings(threshold=0.3), squares, cams=cams, out=tmp_path / "masks")
    assert len(list((tmp_path / "masks").rglob("*.png"))) == len(squares)


def test_thresholds_keep_to_the_budget(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    cams = finished(tmp_path / "cams")
    memory.choose("0.00001GB")
    with pytest.raises(BadInput, match=r"found a picture of \d+x\d+ pixels, which takes about"):
        choose_thresholds(squares, cams=cams, out=tmp_path / "none")
    # one picture at a time, and all
    for budget, out in (("0.00005GB", "one"), ("1GB", "all")):
        memory.choose(budget)
        choose_thresholds(squares, cams=cams, out=tmp_path / out)
    assert (tmp_path / "one" / THRESHOLDS).read_bytes() == (tmp_path / "all" / THRESHOLDS).read_bytes()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("run", "cam"), True),
        (("localize", "cam"), True),
        (("refine",), True),
        (("evaluate",), True),
        (("predict",), True),
        (("tag",), True),
        (("ask",), True),
        (("train", "cam"), False),
    ],
)
def test_short_help_pages_show_it_where_it_matters(words, shown, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    assert ("--memory" in capsys.readouterr().out) == shown


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CAMNetwork("resnet10t", 3, 16).eval()


def test_reach(network):
    found = reach(network, network.maps)
    assert found.local
    assert found.stride == 16
    assert found.radius % 16 == 0
    # squeeze-and-excitation averages over the picture
    assert not reach(body := nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Mean()), body).local


def test_bytes_of_a_pass_are_those_of_the_tensors_that_exist_together():
    first, second = (nn.Conv2d(count, more, 3, padding=1) for count, more in ((3, 8), (8, 4)))
    chain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(inplace=True))
    # the first output and that of its ReLU; later there are fewer
    assert bytes_per_pixel(chain, chain) == pytest.approx(receptive._INSIDE * 4 * (8 + 8))

    def kept(image):
        return first(image), second(first(image).relu())

    assert bytes_per_pixel(chain, kept) == pytest.approx(receptive._INSIDE * 4 * (8 + 8 + 8))


def test_a_network_that_is_prepared_is_expected_to_take_the_same():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 128, 1), nn.Conv2d(128, 128, 3, padding=1)).eval()
    before = bytes_per_pixel(layers, layers)
    prepared = for_inference(layers)
    assert any(isinstance(layer, Winograd) for layer in prepared)
    assert bytes_per_pixel(prepared, prepared) == before


def test_a_network_is_tried_out_where_its_memory_matters(network):
    passes = Passes(network, network.maps, 2)
    rough = receptive.ROUGH * 2 * 1000
    assert passes.whole(1000, 64 * rough) == rough
    assert "bytes_per_pixel" not in vars(passes)
    assert passes.whole(1000, 64 * rough - 1) == 2 * 1000 * passes.bytes_per_pixel


def test_irnet_counts_the_padding(monkeypatch):
    monkeypatch.setattr(Passes, "whole", lambda self, pixels, limit: 100 * self.batch * pixels)
    memory.choose("2GB")
    images = Images.from_arrays(
        [np.zeros((side, side, 3), np.uint8) for side in (32, 512)], np.ones((2, 1), bool), ["a class"]
    )
    network = IRNet("test_resnet")
    needs = walk_needs(IRNetWalk(pad_to=512), images, network)
    assert 0.8 * needs(1) < needs(0) < needs(1)
    needs = walk_needs(IRNetWalk(pad_to=0), images, network)
    assert needs(0) == needs(1) // 256


class Mean(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize(("height", "width", "core"), [(90, 203, 64), (130, 141, 128), (64, 70, 16)])
@torch.inference_mode()
def test_tiles_are_the_whole(network, height, width, core):
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    whole = network.maps(image)
    parts = tiled(
        lambda rows, columns: network.maps(image[..., rows, columns]),
        (height, width),
        reach(network, network.maps),
        core,
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_maps_of_a_large_picture_are_those_of_the_whole(network, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (103, 180, 3)).astype(np.uint8)
    label = np.array([True, False, True])
    settings = MultiScale(scales=(1.0, 0.5, 2.0))
    whole = CAMLocalizer(network, settings)
    expected = whole.cams(whole.prepare(image), (103, 180), label)
    memory.choose("15MB")
    # smaller than what follows from the budget, so that there are several
    monkeypatch.setattr("wsss.networks.receptive._SMALLEST_TILE", 32)
    parts = CAMLocalizer(network, settings)
    assert parts.in_tiles((103, 180))
    assert not parts.in_tiles((10, 10))
    found = parts.cams(parts.prepare(image), (103, 180), label)
    assert parts._core() < 180
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_the_record_says_which_maps_were_made_in_tiles(tmp_path, squares, network, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        title: ClassVar[str] = "a test"

        def localizer(self, images):
            return CAMLocalizer(network, MultiScale(scales=(1.0,)))

    images = squares.subset(range(3))
    monkeypatch.setattr("wsss.networks.receptive.Tiles.of_tile", lambda self, core: 0)
    assert localize.localize(Settings(), images, out=tmp_path / "whole")
    memory.choose("0.01GB")
    monkeypatch.setattr("wsss.classifier.CAMLocalizer._whole", lambda self, size_hw: 10 * GB)
    localize.localize(Settings(), images, out=tmp_path / "tiles")
    assert read_record(tmp_path / "whole")["result"] == {"images": 3, "batch": 3}
    assert read_record(tmp_path / "tiles")["result"] == {"images": 3, "in tiles": 3}
