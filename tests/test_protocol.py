"""Which runs there are, what settings each one gets, and that one failure does not end the others."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from wsss import launch, protocol
from wsss.errors import BadInput
from wsss.protocol import PlannedRun, plan, run_all
from wsss.settings import Field
from wsss.storage import write_json


@dataclasses.dataclass(frozen=True)
class Training:
    epochs: int = 5
    batch: int = 16


@dataclasses.dataclass(frozen=True)
class Network:
    backbone: str = "resnet50"
    init: str = "imagenet"
    training: Training = Training()


@dataclasses.dataclass(frozen=True)
class Taught:
    init: str = "baseline"
    clip: str = "hub"
    training: Training = Training()


@dataclasses.dataclass(frozen=True)
class Inference:
    scales: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Frozen:
    clip: str = "hub"


@dataclasses.dataclass(frozen=True)
class Plain:
    kind: Literal["crf"] = "crf"
    clip: str = "none"


@dataclasses.dataclass(frozen=True)
class Learned:
    kind: Literal["irnet"] = "irnet"
    clip: str = "none"
    network: Network = Network()


def sections(**defaults: Any) -> dict[str, Field]:
    own = {name: Field(type(default), default) for name, default in defaults.items()}
    return own | {"refiner": Field(Plain | Learned, Plain())}


METHODS = {
    "cam": sections(classifier=Network(), inference=Inference()),
    "clims": sections(baseline=Network(), classifier=Taught(), inference=Inference()),
    "clip_es": sections(inference=Frozen()),
}


def planned(**given: Any) -> dict[str, Any]:
    return {one.name: one.content for one in plan(METHODS, given.get("common", {}), given.get("runs", {}))}


def test_every_method_runs_with_its_own_settings_by_default() -> None:
    assert plan(METHODS, {}, {}) == [PlannedRun(name, name, {}) for name in METHODS]


def test_a_common_setting_goes_wherever_there_is_one_of_its_name() -> None:
    common = {"backbone": "resnet10t", "scales": [0.5], "clip": "own", "init": "none", "refiner": "irnet"}
    network = {"backbone": "resnet10t", "init": "none"}
    refiner = {"kind": "irnet"}
    assert planned(common=common) == {
        "cam": {"classifier": network, "inference": {"scales": [0.5]}, "refiner": refiner},
        # initial weights are those of a backbone: what goes on from a baseline does so
        "clims": {
            "baseline": network,
            "classifier": {"clip": "own"},
            "inference": {"scales": [0.5]},
            "refiner": refiner,
        },
        "clip_es": {"inference": {"clip": "own"}, "refiner": refiner},
    }


def test_a_section_comes_on_top_of_the_common_settings() -> None:
    runs = {"clims": {"classifier": {"training": {"epochs": 2}}, "refiner": "crf"}, "cam": {"refiner": {"clip": "y"}}}
    common = {"training": {"epochs": 9, "batch": 4}, "refiner": {"kind": "irnet", "network": {"init": "x"}}}
    content = planned(common=common, runs=runs)
    assert content["clims"]["classifier"] == {"training": {"epochs": 2, "batch": 4}}
    assert content["clims"]["baseline"] == content["cam"]["classifier"] == {"training": {"epochs": 9, "batch": 4}}
    # another kind takes the settings of the common one away
    assert content["clims"]["refiner"] == {"kind": "crf"}
    assert content["cam"]["refiner"] == {"kind": "irnet", "network": {"init": "x"}, "clip": "y"}


def test_settings_of_a_planned_run_are_typed_and_named_as_they_were_given() -> None:
    (one,) = plan(METHODS, {"scales": [1, 2]}, {"cam": {"refiner": "irnet"}}, ["cam"])
    assert one.settings(METHODS) == {
        "classifier": Network(),
        "inference": Inference((1.0, 2.0)),
        "refiner": Learned(),
    }
    for common, runs, message in (
        ({"scales": "x"}, {}, "^common.scales: found 'x'"),
        (
            {},
            {"cam": {"refiner": {"network": {}}}},
            "^runs.cam.refiner.network: found a setting of irnet, while kind is crf",
        ),
        ({}, {"cam": {"clasifier": {}}}, "^runs.cam.clasifier: no such setting. Did you mean classifier"),
    ):
        (one,) = plan(METHODS, common, runs, ["cam"])
        with pytest.raises(BadInput, match=message):
            one.settings(METHODS)


def test_a_clip_that_is_trained_for_all(tmp_path: Path) -> None:
    common = protocol.with_clip({"scales": [1]}, tmp_path, by_tagclip=False)
    assert common == {"scales": [1], "clip": str(tmp_path / "clip")}
    mentions = {one.name: one.mentions(common["clip"]) for one in plan(METHODS, common, {})}
    assert mentions == {"cam": False, "clims": True, "clip_es": True}
    for given, by_tagclip in (({"clip": "x"}, False), ({}, True)):
        with pytest.raises(BadInput, match=r"^clip: found it together with"):
            protocol.with_clip(given, tmp_path, by_tagclip)


def test_a_method_may_run_several_times() -> None:
    runs = {
        "small": {"method": "cam", "classifier": {"backbone": "resnet18"}},
        "large": {"method": "cam"},
        "clims": None,
    }
    found = plan(METHODS, {}, runs)
    assert [(one.name, one.method) for one in found] == [
        ("small", "cam"), ("large", "cam"), ("clims", "clims"), ("clip_es", "clip_es"),
    ]  # fmt: skip
    assert found[0].content == {"classifier": {"backbone": "resnet18"}}
    assert [one.name for one in plan(METHODS, {}, runs, ["cam", "clip_es"])] == ["small", "large", "clip_es"]
    assert [one.name for one in plan(METHODS, {}, runs, ["large"])] == ["large"]


@pytest.mark.parametrize(
    ("common", "runs", "chosen", "message"),
    [
        ({"bakbone": "x"}, {}, None, "^common.bakbone: no such setting of any method. Did you mean backbone?"),
        ({}, {"cams": {}}, None, "runs.cams: found no method 'cams'; expected one of cam, clims, clip_es"),
        ({}, {"one": {"method": "cma"}}, None, "runs.one: found no method 'cma'"),
        ({}, {"clip": {"method": "cam"}}, None, "the name 'clip'"),
        ({}, {"a/b": {"method": "cam"}}, None, "the name 'a/b'"),
        ({}, {}, ["cam", "vwl"], "--methods: found 'vwl'"),
    ],
)
def test_what_cannot_be_is_refused(common: Any, runs: Any, chosen: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan(METHODS, common, runs, chosen)


def test_a_run_mentions_a_value_that_any_of_its_settings_has() -> None:
    one = PlannedRun("a", "cam", {"clims": {"clip": "own", "levels": [1]}})
    assert one.mentions("own")
    assert not one.mentions("other")


def three(out: Path) -> list[PlannedRun]:
    write_json(out / "data.json", {"bad": {}})
    return [PlannedRun(name, "cam", {"classifier": {"init": "none"}}) for name in ("a", "b", "c")]


def test_one_failure_does_not_end_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = []
    errors = {"a": BadInput("clip", "no such file", "a CLIP", "Fetch it."), "b": RuntimeError("out of memory")}

    def make(one: PlannedRun, run: Path) -> None:
        assert yaml.safe_load((run / "settings.yaml").read_text()) == {"classifier": {"init": "none"}}
        assert json.loads((run / "data.json").read_text()) == {"bad": {}}
        assert not (run / "failed.json").exists()
        if one.name in errors:
            raise errors[one.name]
        made.append(one.name)

    assert run_all(tmp_path, three(tmp_path), make) == ["a", "b"]
    assert made == ["c"]
    failures = {name: json.loads((tmp_path / name / "failed.json").read_text()) for name in errors}
    assert failures["a"] == {"error": "clip: found no such file; expected a CLIP. Fetch it."}
    assert failures["b"]["error"] == "RuntimeError: out of memory"
    assert "in make" in "".join(failures["b"]["traceback"])
    assert "b failed: RuntimeError: out of memory" in caplog.text

    errors.clear()
    assert run_all(tmp_path, three(tmp_path), make) == []
    assert made == ["c", "a", "b", "c"]
    assert not list(tmp_path.glob("*/failed.json"))


def test_an_interruption_ends_all(tmp_path: Path) -> None:
    def make(one: PlannedRun, run: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, three(tmp_path), make)
    assert not (tmp_path / "a" / "failed.json").exists()


def test_several_processes_end_with_the_first_failure_and_leave_it_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "processes", lambda: 2)
    monkeypatch.setattr(launch, "decided_by_first", lambda decide: decide())
    tried = []

    def make(one: PlannedRun, run: Path) -> None:
        tried.append(one.name)
        if one.name == "a":
            raise RuntimeError("no memory")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            run_all(tmp_path, three(tmp_path), make)
    assert tried == ["a", "b", "c", "a"]


def test_earlier_runs_are_remembered(tmp_path: Path) -> None:
    protocol.write_run_names(tmp_path, [PlannedRun("a", "cam", {}), PlannedRun("b", "clims", {})])
    protocol.write_run_names(tmp_path, [PlannedRun("b", "clims", {}), PlannedRun("c", "clip_es", {})])
    assert json.loads((tmp_path / "runs.json").read_text()) == {"a": "cam", "b": "clims", "c": "clip_es"}
