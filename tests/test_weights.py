import os
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from tests.parity import fixtures
from wsss import checkpoints, loading, weights
from wsss.errors import BadInput
from wsss.networks import deeplab
from wsss.networks.backbone import create_backbone
from wsss.networks.irnet import IRNET_ALIASES


def small_state() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}, "optimizer": [1, 2]},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "nested", "parallel"],
)
def test_wrappings_are_taken_off(tmp_path, suffix, zipped, wrap):
    path = tmp_path / f"some{suffix}"
    torch.save(wrap(small_state()), path, _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.read_checkpoint(path), small_state())


class RunsCode:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def save_zip(content, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_a_pickle_that_would_run_code_does_not(tmp_path, save):
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"
    save({"weight": torch.zeros(2), "more": RunsCode(witness)}, path)
    with pytest.raises(BadInput, match=r"evil\.pth: found a pickle that would run code"):
        checkpoints.read_checkpoint(path)
    assert not witness.exists()


def test_what_a_pickle_asks_for_is_named(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(BadInput, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        checkpoints.read_checkpoint(tmp_path / "module.pth")


def test_unreadable_files_are_named(tmp_path):
    zipped, legacy, tensors = tmp_path / "zipped.pth", tmp_path / "legacy.pth", tmp_path / "some.safetensors"
    save_zip(small_state(), zipped)
    save_legacy(small_state(), legacy)
    weights.write_weights(tensors, small_state(), {})
    for whole in (zipped, legacy, tensors):
        content = whole.read_bytes()
        for length in (9, len(content) // 3, len(content) - 3):
            cut = tmp_path / f"cut-{length}{whole.suffix}"
            cut.write_bytes(content[:length])
            with pytest.raises(BadInput, match=rf"{cut.name}: found "):
                checkpoints.read_checkpoint(cut)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, suffix):
    empty, page, folder, absent, noise = (
        tmp_path / f"{name}{suffix}" for name in ("empty", "page", "folder", "absent", "noise")
    )
    empty.touch()
    page.write_text("<!DOCTYPE html><title>Sign in</title>" * 40)
    folder.mkdir()
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    for path, found in (
        (empty, "an empty file"),
        (page, "a text that begins with '<!DOCTYPE"),
        (folder, "a folder"),
        (absent, "no such file"),
        (noise, ""),
    ):
        with pytest.raises(BadInput, match=rf"{path.name}: found {found}"):
            checkpoints.read_checkpoint(path)


def test_other_kinds_of_content(tmp_path):
    path = tmp_path / "some.pth"
    for content, found in (
        ([torch.zeros(1)], "a list"),
        ({}, "an empty dictionary"),
        ({"weight": torch.zeros(1), "epoch": 3}, r"not tensors \(epoch\)"),
    ):
        torch.save(content, path)
        with pytest.raises(BadInput, match=found):
            checkpoints.read_checkpoint(path)
    (tmp_path / "init.caffemodel").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"ends in '\.caffemodel'"):
        checkpoints.read_checkpoint(tmp_path / "init.caffemodel")
    with pytest.raises(BadInput, match="no such file or folder"):
        checkpoints.read_checkpoint(tmp_path / "no_such_folder")


def test_own_files_come_back(tmp_path):
    metadata = {"settings": {"backbone": "resnet50", "scales": [0.5, 1.0]}, "name": "Zoë", "none": None}
    path = tmp_path / "deep" / "weights.safetensors"
    state = small_state() | {"transposed": torch.arange(6).reshape(2, 3).T}
    weights.write_weights(path, state, metadata)
    read, read_metadata = weights.read_weights(path)
    assert same(read, state)
    assert read_metadata == metadata
    assert same(checkpoints.read_checkpoint(path), state)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_own_files_have_equal_bytes_in_whatever_order_they_are_given(tmp_path):
    # several metadata entries would come in a new order with each file
    for i in range(10):
        names = "abcdefgh"[:: 1 if i % 2 else -1]
        weights.write_weights(tmp_path / f"{i}", {n: torch.ones(2) for n in names}, {n: n for n in names})
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(10)}) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.write_weights(path, small_state(), {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        weights.write_weights(path, small_state(), {"settings": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


class Tiny(nn.Module):
    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, n_classes, 1)


def test_load_into_reports_every_tensor():
    source, target = Tiny(5), Tiny(3)
    state = source.state_dict()
    del state["bn.num_batches_tracked"], state["conv.bias"]
    state["fc.weight"] = torch.zeros(2)
    report = loading.load_into(target, state, "file", allow_missing=("head.*", "conv.bias"), ignore=("fc.*",))
    assert report.loaded == ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert report.ignored == ("fc.weight",)
    assert report.missing == ("conv.bias",)
    assert report.mismatched == ("head.weight", "head.bias")
    assert torch.equal(target.conv.weight, source.conv.weight)
    assert "5 tensors loaded" in str(report)
    assert "fc.weight" in str(report)
    assert "conv.bias" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv.bias"), r"7 of 9 tensors match, 1 missing \(conv\.bias\)"),
        (lambda s: s.update({"fc.weight": torch.zeros(1)}), r"1 unknown to the network \(fc\.weight\)"),
        (
            lambda s: s.update({"head.weight": torch.zeros(5, 4, 1, 1)}),
            r"1 of another shape \(head\.weight: \(5, 4, 1, 1\) for \(3, 4, 1, 1\)\)",
        ),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_loaded(change, message):
    source, target = Tiny(), Tiny()
    state = dict(source.state_dict())
    change(state)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(BadInput, match=message.replace("7 of 9", r"\d of 9")) as caught:
        loading.load_into(target, state, "some/file.pth")
    assert str(caught.value).startswith("some/file.pth: found weights of another network")
    assert "Nothing was loaded" in caught.value.do
    assert same(before, target.state_dict())


def test_long_lists_are_cut_in_the_message():
    state = {f"layer{i}.weight": torch.zeros(1) for i in range(100)}
    with pytest.raises(BadInput) as caught:
        loading.load_into(Tiny(), state, "file")
    assert "100 unknown to the network (layer0.weight, layer1.weight, layer2.weight and 97 more)" in str(caught.value)
    assert len(str(caught.value)) < 800


def manifest(name: str) -> dict[str, torch.Tensor]:
    """A state dict of the right names and shapes that takes no room: each tensor repeats one value of its own."""
    shapes = fixtures.table(f"{name}.json")
    return {
        key: torch.tensor(float(i) if "num_batches" not in key else i).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }


def test_published_deeplab_files():
    network = deeplab.create_deeplab(21, deeplab.DeepLabLayers())
    head = {name: value.clone() for name, value in network.base.aspp.state_dict().items()}
    state = manifest("deeplab/manifest-deeplabv1-coco-init")
    report = loading.load_deeplab(network, state, "deeplabv1_resnet101-coco.pth")
    assert report.ignored == ("base.fc.weight", "base.fc.bias")
    assert len(report.loaded) == 624
    assert set(report.missing) == {f"base.aspp.{name}" for name in head}
    assert not report.mismatched
    assert same(head, network.base.aspp.state_dict())
    assert torch.equal(network.base.layer5.block3.increase.conv.weight, state["layer5.block3.increase.conv.weight"])

    state = manifest("deeplab/manifest-deeplabv2-msc")
    report = loading.load_deeplab(network, state, "deeplabv2_resnet101_msc-vocaug-20000.pth")
    assert len(report.loaded) == 632
    assert report.missing == report.ignored == report.mismatched == ()
    assert torch.equal(network.base.aspp.c3.weight, state["base.aspp.c3.weight"])

    other_classes = state | {f"base.aspp.c{i}.weight": torch.zeros(182, 2048, 3, 3) for i in range(4)}
    other_classes |= {f"base.aspp.c{i}.bias": torch.zeros(182) for i in range(4)}
    with pytest.raises(BadInput, match="8 of another shape"):
        loading.load_deeplab(network, other_classes, "deeplabv2_resnet101_msc-cocostuff164k-100000.pth")
    report = loading.load_deeplab(network, other_classes, "cocostuff", new_head=True)
    assert len(report.mismatched) == 8


@pytest.mark.parametrize("kept", ["whole", "with a fault"])
def test_deeplab_initial_weights_from_a_file(tmp_path, kept):
    torch.manual_seed(0)
    source = deeplab.DeepLabV2(21, n_blocks=(1, 1, 1, 1))
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("aspp.")}
    state |= {"fc.weight": torch.zeros(91, 2048, 1, 1), "fc.bias": torch.zeros(91)}
    if kept == "with a fault":
        del state["layer3.block1.reduce.conv.weight"]
    path = tmp_path / "deeplabv1_resnet101-coco.pth"
    torch.save(state, path)
    target = deeplab.MSC(deeplab.DeepLabV2(21, n_blocks=(1, 1, 1, 1)))
    before = target.base.layer2.block1.reduce.conv.weight.clone()
    if kept == "whole":
        loading.load_deeplab(target, checkpoints.read_checkpoint(path), path)
        assert torch.equal(target.base.layer2.block1.reduce.conv.weight, source.layer2.block1.reduce.conv.weight)
    else:
        with pytest.raises(BadInput, match=r"1 missing \(base\.layer3\.block1\.reduce\.conv\.weight\)"):
            loading.load_deeplab(target, checkpoints.read_checkpoint(path), path)
        assert torch.equal(target.base.layer2.block1.reduce.conv.weight, before)


@pytest.mark.parametrize("prefix", ["module.base.", "base.", ""])
def test_deeplab_weights_of_vwl_have_other_layer_names(tmp_path, prefix):
    torch.manual_seed(0)
    source = deeplab.DeepLabV2(21, n_blocks=(1, 1, 1, 1))
    names = {"bn": "batch_norm", "reduce": "conv1", "conv3x3": "conv2", "increase": "conv3"}
    state = {}
    for name, value in source.state_dict().items():
        stem, _, rest = name.partition("layer1.conv1.")
        parts = [names.get(part, part) for part in (rest or stem).split(".")]
        state[prefix + ("layer1.conv7x7." if rest else "") + ".".join(parts)] = value
    assert f"{prefix}layer2.block1.conv1.batch_norm.running_mean" in state
    path = tmp_path / "checkpoint_final.pth"
    torch.save({key: value for key, value in state.items() if prefix or not key.startswith("aspp.")}, path)
    target = deeplab.MSC(deeplab.DeepLabV2(21, n_blocks=(1, 1, 1, 1)))
    report = loading.load_deeplab(target, checkpoints.read_checkpoint(path), path)
    assert bool(report.missing) == (not prefix)
    for name, value in source.state_dict().items():
        assert name.startswith("aspp.") or torch.equal(target.base.state_dict()[name], value)


def test_irnet_cam_file_has_its_aliases_left_out():
    network = nn.Module()
    network.resnet50 = create_backbone("resnet50")
    network.classifier = nn.Conv2d(2048, 20, 1, bias=False)
    assert network.state_dict().keys() == manifest("clims/manifest-resnet50_cam").keys()
    state = manifest("clims/manifest-resnet50_cam-checkpoint")
    report = loading.load_into(network, state, "res50_cam.pth", ignore=IRNET_ALIASES)
    assert (len(report.loaded), len(report.ignored), len(report.missing)) == (319, 956 - 319, 0)
    assert same(network.state_dict(), {name: state[name] for name in report.loaded})


def test_irnet_file_keeps_each_tensor_once():
    network = nn.Module()
    network.fc_edge1 = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    network.fc_dp7 = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    network.mean_shift = nn.Module()
    network.mean_shift.register_buffer("running_mean", torch.zeros(2))
    aliases = (
        "stage5.0.2.conv3.weight", "backbone.4.0.2.conv3.weight", "edge_layers.0.0.weight",
        "dp_layers.6.4.running_mean", "fc_dp7.4.running_mean", "disp_target", "path_indices0", "path_indices19",
    )  # fmt: skip
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    state |= {name: torch.zeros(1) for name in aliases}
    report = loading.load_into(network, state, "res50_irn.pth", ignore=IRNET_ALIASES)
    assert report.loaded == ("fc_edge1.0.weight", "fc_dp7.0.weight", "mean_shift.running_mean")
    assert report.ignored == aliases


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("wsss.hub.is_reachable", lambda address: True)
    return tmp_path / "checkpoints"


def test_imagenet_weights_from_the_cache(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched what is there"))
    hub.mkdir()
    torch.save(small_state(), hub / "resnet50-0676ba61.pth")
    state, path = checkpoints.imagenet_weights("resnet50")
    assert same(state, small_state())
    assert path == hub / "resnet50-0676ba61.pth"


def test_imagenet_weights_are_fetched_into_the_cache_by_their_digest(hub, monkeypatch):
    def fetch(url, to, digest, progress):
        assert digest == "0676ba61"
        torch.save(small_state(), to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert same(checkpoints.imagenet_weights("resnet50")[0], small_state())


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("Name or service not known"), RuntimeError("invalid hash value"), TimeoutError()]
)
def test_imagenet_weights_without_network(hub, monkeypatch, error):
    def fetch(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(BadInput) as caught:
        checkpoints.imagenet_weights("resnet101")
    assert caught.value.where.startswith(str(hub / "resnet101-"))
    assert "--init FILE" in caught.value.do
    assert "--init none" in caught.value.do


def test_weights_are_not_asked_for_where_nothing_answers(hub, monkeypatch):
    monkeypatch.setattr("wsss.hub.is_reachable", lambda address: False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(BadInput, match="no connection") as caught:
        checkpoints.imagenet_weights("resnet18", "classifier.init")
    assert str(hub / "resnet18-") in caught.value.where
    assert "--classifier.init FILE" in caught.value.do
    with pytest.raises(BadInput, match="models--timm--resnet10t") as caught:
        checkpoints.timm_weights("resnet10t", "segmenter.init")
    assert "--segmenter.init none" in caught.value.do


def test_the_weights_that_are_checked_early_are_those_of_the_libraries():
    from wsss import hub

    urls = {name: torchvision.models.get_model_weights(name).IMAGENET1K_V1.url for name in hub.TORCHVISION}
    assert urls == {name: f"https://download.pytorch.org/models/{file}" for name, file in hub.TORCHVISION.items()}
    assert {name: timm.models.get_pretrained_cfg(name).hf_hub_id for name in hub.TIMM} == hub.TIMM


def test_imagenet_weights_of_an_unknown_model():
    with pytest.raises(BadInput, match="convnext_nano"):
        checkpoints.imagenet_weights("convnext_nano")


def test_imagenet_weights_fit_the_backbone_of_that_name(hub):
    hub.mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), hub / "resnet18-f37072fd.pth")
    state, path = checkpoints.imagenet_weights("resnet18")
    backbone = create_backbone("resnet18")
    report = loading.load_into(backbone, state, path, ignore=("fc.*",))
    assert report.ignored == ("fc.weight", "fc.bias")
    assert not report.missing
    assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_none(tmp_path, number, dtype):
    state = {"good": torch.ones(3), "layer.weight": torch.tensor([1.0, number, number]).to(dtype)}
    weights.write_weights(tmp_path / "a.safetensors", state, {"kind": "cam"})
    torch.save(state, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        with pytest.raises(BadInput, match=rf"{path.name}: found 2 numbers of layer\.weight that are infinite or NaN"):
            checkpoints.read_checkpoint(path)


def test_large_numbers_are_numbers(tmp_path):
    state = {
        "a": torch.full((4,), torch.finfo(torch.float32).max),
        "b": torch.full((9,), torch.finfo(torch.float16).max, dtype=torch.float16),
    }
    state["c"] = torch.full((4,), torch.finfo(torch.float64).max, dtype=torch.float64)
    weights.write_weights(tmp_path / "a.safetensors", state, {})
    assert checkpoints.read_checkpoint(tmp_path / "a.safetensors").keys() == state.keys()


@pytest.mark.parametrize("text", ["{", "5", "[]", "null", "NaN", "[" * 100_000, "9" * 5000])
def test_metadata_that_is_none(tmp_path, text):
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"wsss": text}))
    with pytest.raises(BadInput, match=r"a\.safetensors: found"):
        weights.read_weights(tmp_path / "a.safetensors")


def test_a_pipe_in_the_place_of_weights(tmp_path):
    for name in ("a.safetensors", "a.pth", "a.params"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(BadInput, match="found a named pipe"):
            checkpoints.read_checkpoint(tmp_path / name)
