"""Half precision at inference: close to float32, recorded, chosen by presets where the processor has it, and slow elsewhere, which is said."""

import dataclasses
import logging
import sys

import numpy as np
import pytest
import torch
import yaml

from wsss import precision, presets, processor
from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.commands import command
from wsss.methods.icam import ICAMInference, ICAMLocalizer
from wsss.networks.seam import SEAMNetwork
from wsss.presets import RECORDED
from wsss.run import plain
from wsss.stages.predict import PredictSettings

SAPPHIRE = (
    "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
)
ICE_LAKE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: amx_bf16\n"


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Make this machine's processor another one."""

    def choose(cpuinfo: str) -> None:
        file = tmp_path / f"cpuinfo {len(cpuinfo)}"
        file.write_text(cpuinfo)
        monkeypatch.setattr(processor, "CPUINFO", file)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
        precision.warn_if_slow.cache_clear()

    yield choose
    precision.warn_if_slow.cache_clear()


def test_processors_are_told_apart_by_their_flags(on, monkeypatch, tmp_path):
    on(SAPPHIRE)
    assert (processor.has_native("bf16"), processor.has_native("fp16")) == (True, False)
    on(ICE_LAKE)
    assert not processor.has_native("bf16")
    on("Processor\t: ARM\nFeatures\t: fp asimd bf16\n")
    assert not processor.has_native("bf16")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    assert not processor.has_native("bf16")
    # torch 2.15 refuses attention in bfloat16 there: "pack_vnni2 is only supported when avx512 is supported"
    on(SAPPHIRE)
    for capability, native in (("avx2", False), ("default", False), ("AVX512", True)):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        assert processor.has_native("bf16") == native


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not list them")
def test_this_processor_is_what_torch_takes_it_for(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    found = torch.cpu.get_capabilities()
    assert processor.has_native("bf16") == (found.get("avx512_bf16", False) or found.get("amx_bf16", False))


def picture_and_tags():
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    return image, np.array([True, False, True])


def cam(chosen):
    return CAMLocalizer(CAMNetwork("test_resnet", 3).eval(), MultiScale((1.0, 0.5), precision=chosen))


def seam(chosen):
    return ICAMLocalizer(SEAMNetwork(3, "test_resnet").eval(), ICAMInference((1.0,), precision=chosen), "seam")


@pytest.mark.parametrize("localizer", [cam, seam])
def test_maps_are_close_to_those_in_single_precision(localizer):
    image, label = picture_and_tags()
    made = {}
    for chosen in ("no", "bf16"):
        torch.manual_seed(0)
        one = localizer(chosen)
        made[chosen] = one.cams(one.prepare(image), image.shape[:2], label)
    assert made["bf16"].maps.dtype == np.float32
    assert 0 < np.abs(made["bf16"].maps - made["no"].maps).max() < 0.05
    assert np.abs(made["bf16"].maps_stride4 - made["no"].maps_stride4).max() < 0.05


def test_records_name_it():
    for settings in (MultiScale(precision="bf16"), PredictSettings(precision="bf16")):
        assert plain(settings)["precision"] == "bf16"
        assert plain(dataclasses.replace(settings, precision="no"))["precision"] == "no"


def test_slow_half_precision_is_said_once(on, caplog):
    caplog.set_level(logging.WARNING, "wsss")
    on(SAPPHIRE)
    for _ in range(2):
        with precision.mixed("bf16", torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not caplog.messages
    on(ICE_LAKE)
    for chosen in ("no", "bf16", "bf16"):
        with precision.mixed(chosen, torch.device("cpu")):
            pass
    (message,) = caplog.messages
    assert message.startswith("precision bf16 is slower than float32 (`no`) on this processor")


def settings_of(*words):
    name, chosen = command(words)
    return chosen.parser(name).parse([*words[len(name.split()) :], "--data", "D"])


def test_presets_choose_it_where_the_processor_has_it(on, tmp_path):
    run = ("run", "cam", "--preset", "quick", "--out", str(tmp_path))
    for cpuinfo, expected in ((SAPPHIRE, "bf16"), (ICE_LAKE, "no")):
        on(cpuinfo)
        _, chosen = settings_of(*run)
        assert (chosen.mirrors["inference"].precision, chosen.mirrors["test"].precision) == (expected, expected)
        assert {chosen.mirrors[name].training.precision for name in ("classifier", "segmenter")} == {expected}
        _, chosen = settings_of(*run, "--segmenter", "frozen")
        assert chosen.mirrors["segmenter"].training.precision == "no"
    on(SAPPHIRE)
    _, chosen = settings_of(*run, "--inference.precision", "no")
    assert (chosen.mirrors["inference"].precision, chosen.mirrors["test"].precision) == ("no", "bf16")
    _, chosen = settings_of("localize", "clip_es", "--preset", "small-cpu", "--out", str(tmp_path))
    assert chosen.mirrors[""].precision == "bf16"


@pytest.mark.parametrize("segmenter", ["deeplab", "emanet", "retrieval"])
def test_a_run_goes_on_with_it_on_another_processor(on, tmp_path, segmenter):
    given = ("--refiner.threshold", "0.3", "--segmenter", segmenter)
    run = ("run", "cam", "--preset", "quick", "--out", str(tmp_path), *given)

    def precisions(chosen):
        trained = [getattr(chosen.mirrors[name], "training", None) for name in ("classifier", "segmenter")]
        used = [chosen.mirrors["inference"], chosen.mirrors["test"], *(one for one in trained if one is not None)]
        return [one.precision for one in used]

    for first, then, expected in ((SAPPHIRE, ICE_LAKE, "bf16"), (ICE_LAKE, SAPPHIRE, "no")):
        on(first)
        _, chosen = settings_of(*run)
        recorded = presets.to_record(chosen.given, chosen.preset, "cam", chosen.mirrors)
        assert recorded["refiner"] == {"threshold": "0.3"} or recorded["refiner"]["threshold"] in (0.3, "0.3")
        (tmp_path / RECORDED).write_text(yaml.safe_dump(recorded))
        on(then)
        _, chosen = settings_of(*run)
        assert precisions(chosen) == [expected] * (3 if segmenter == "retrieval" else 4)
        assert chosen.mirrors["segmenter"].kind == segmenter
        _, changed = settings_of(*run, "--classifier.training.precision", "bf16")
        assert changed.mirrors["classifier"].training.precision == "bf16"
        (tmp_path / RECORDED).unlink()


def test_a_run_that_was_begun_before_presets_trained_in_it_goes_on(on, tmp_path):
    on(SAPPHIRE)
    recorded = {"preset": "quick", "inference": {"precision": "bf16"}, "test": {"precision": "bf16"}}
    (tmp_path / RECORDED).write_text(yaml.safe_dump(recorded))
    _, chosen = settings_of("run", "cam", "--preset", "quick", "--out", str(tmp_path))
    found = [chosen.mirrors[name].training.precision for name in ("classifier", "segmenter")]
    assert (found, chosen.mirrors["test"].precision) == (["no", "no"], "bf16")
