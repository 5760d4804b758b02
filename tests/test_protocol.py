"""Which runs there are, what settings each one gets, and that one failure does not end the others."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsss import launch, protocol
from wsss.errors import BadInput
from wsss.protocol import Planned, plan, run_all
from wsss.storage import write_json


@dataclasses.dataclass(frozen=True)
class Network:
    backbone: str = "resnet50"
    init: str = "imagenet"
    training: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Taught:
    init: str = "baseline"
    clip: str = "hub"
    training: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Inference:
    scales: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Frozen:
    clip: str = "hub"


@dataclasses.dataclass(frozen=True)
class Tail:
    refiner: str = "crf"
    clip: str = "none"


@dataclasses.dataclass(frozen=True)
class Cam:
    classifier: Network = Network()
    inference: Inference = Inference()
    tail: Tail = Tail()


@dataclasses.dataclass(frozen=True)
class Clims:
    classifier: Network = Network()
    clims: Taught = Taught()
    inference: Inference = Inference()
    tail: Tail = Tail()


@dataclasses.dataclass(frozen=True)
class ClipES:
    inference: Frozen = Frozen()
    tail: Tail = Tail()


RECIPES: dict[str, type] = {"cam": Cam, "clims": Clims, "clip_es": ClipES}


def planned(**given: Any) -> dict[str, Any]:
    return {one.name: one.content for one in plan(RECIPES, given.get("common", {}), given.get("runs", {}))}


def test_every_method_runs_with_its_own_settings_by_default() -> None:
    assert plan(RECIPES, {}, {}) == [Planned(name, name, {}) for name in RECIPES]


def test_a_common_setting_goes_wherever_there_is_one_of_its_name() -> None:
    common = {"backbone": "resnet10t", "scales": [0.5], "clip": "own", "init": "none", "tail": {"refiner": "irnet"}}
    network = {"backbone": "resnet10t", "init": "none"}
    assert planned(common=common) == {
        "cam": {"classifier": network, "inference": {"scales": [0.5]}, "tail": {"refiner": "irnet"}},
        # initial weights are those of a backbone: what goes on from a baseline does so
        "clims": {
            "classifier": network,
            "clims": {"clip": "own"},
            "inference": {"scales": [0.5]},
            "tail": {"refiner": "irnet"},
        },
        "clip_es": {"inference": {"clip": "own"}, "tail": {"refiner": "irnet"}},
    }


def test_a_section_comes_on_top_of_the_common_settings() -> None:
    runs = {"clims": {"clims": {"training": {"epochs": 2}}, "tail": {"refiner": "crf"}}}
    content = planned(
        common={"training": {"epochs": 9, "batch": 4}, "tail": {"refiner": "irnet", "clip": "x"}}, runs=runs
    )
    assert content["clims"]["clims"] == {"training": {"epochs": 2, "batch": 4}}
    assert content["clims"]["classifier"] == content["cam"]["classifier"] == {"training": {"epochs": 9, "batch": 4}}
    assert content["clims"]["tail"] == {"refiner": "crf", "clip": "x"}
    assert content["cam"]["tail"] == {"refiner": "irnet", "clip": "x"}


def test_a_method_may_run_several_times() -> None:
    runs = {
        "small": {"method": "cam", "classifier": {"backbone": "resnet18"}},
        "large": {"method": "cam"},
        "clims": None,
    }
    found = plan(RECIPES, {}, runs)
    assert [(one.name, one.method) for one in found] == [
        ("small", "cam"), ("large", "cam"), ("clims", "clims"), ("clip_es", "clip_es"),
    ]  # fmt: skip
    assert found[0].content == {"classifier": {"backbone": "resnet18"}}
    assert [one.name for one in plan(RECIPES, {}, runs, ["cam", "clip_es"])] == ["small", "large", "clip_es"]
    assert [one.name for one in plan(RECIPES, {}, runs, ["large"])] == ["large"]


@pytest.mark.parametrize(
    ("common", "runs", "chosen", "message"),
    [
        ({"bakbone": "x"}, {}, None, "common.bakbone: found a setting that no method has.*backbone"),
        ({}, {"cams": {}}, None, "runs.cams: found no method 'cams'; expected one of cam, clims, clip_es"),
        ({}, {"one": {"method": "cma"}}, None, "runs.one: found no method 'cma'"),
        ({}, {"clip": {"method": "cam"}}, None, "the name 'clip'"),
        ({}, {"a/b": {"method": "cam"}}, None, "the name 'a/b'"),
        ({}, {}, ["cam", "vwl"], "--methods: found 'vwl'"),
    ],
)
def test_what_cannot_be_is_refused(common: Any, runs: Any, chosen: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan(RECIPES, common, runs, chosen)


def test_a_run_mentions_a_value_that_any_of_its_settings_has() -> None:
    one = Planned("a", "cam", {"clims": {"clip": "own", "levels": [1]}})
    assert one.mentions("own")
    assert not one.mentions("other")


def three(out: Path) -> list[Planned]:
    write_json(out / "data.json", {"bad": {}})
    return [Planned(name, "cam", {"classifier": {"init": "none"}}) for name in ("a", "b", "c")]


def test_one_failure_does_not_end_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = []
    errors = {"a": BadInput("clip", "no such file", "a CLIP", "Fetch it."), "b": RuntimeError("out of memory")}

    def make(one: Planned, run: Path) -> None:
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
    def make(one: Planned, run: Path) -> None:
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

    def make(one: Planned, run: Path) -> None:
        tried.append(one.name)
        if one.name == "a":
            raise RuntimeError("no memory")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            run_all(tmp_path, three(tmp_path), make)
    assert tried == ["a", "b", "c", "a"]


def test_earlier_runs_are_remembered(tmp_path: Path) -> None:
    protocol.remember(tmp_path, [Planned("a", "cam", {}), Planned("b", "clims", {})])
    protocol.remember(tmp_path, [Planned("b", "clims", {}), Planned("c", "clip_es", {})])
    assert json.loads((tmp_path / "runs.json").read_text()) == {"a": "cam", "b": "clims", "c": "clip_es"}
