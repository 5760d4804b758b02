"""Presets: they apply to every method, kinds choose what of them applies, files and flags override them, and the choice is remembered."""

import functools
import itertools
from pathlib import Path
from typing import get_args

import pytest
import yaml

from wsss import presets, protocol, registry, settings
from wsss.commands import command, commands
from wsss.configs import CONFIGS
from wsss.data.documents import dotted
from wsss.errors import BadInput
from wsss.methods import METHODS
from wsss.options import PresetOptions
from wsss.presets import NAMES, RECORDED, MethodPresets
from wsss.settings import kinds

WORDS = ["--data", "D", "--out", "O"]
RUNS = [name for name in METHODS if "run" in registry.verbs(name)]


def parsed(name, *words):
    return commands()[name].parser(name).parse([*WORDS, *words])


def printed(capsys, *words):
    name, chosen = command(words)
    with pytest.raises(SystemExit):
        chosen.parser(name).parse([*words[len(name.split()) :], "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def leaves(content, keys=()):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def at(content, keys):
    for key in keys:
        content = content[key]
    return content


def test_every_preset_has_a_file_and_every_option_names_them():
    assert {path.stem for path in presets.FOLDER.glob("*.yaml")} == set(NAMES)
    field = settings.fields(PresetOptions)["preset"]
    assert {word for kind in settings.members(field.kind) for word in get_args(kind)} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_preset_exists_in_some_method(name):
    """Those that a method lacks are left out without a word, so a misspelt one would never be noticed."""
    content, reached = presets.read(name), set()
    refiners, segmenters = (list(kinds(registry.shared_section(part).kind)) for part in ("refiner", "segmenter"))
    for method in METHODS:
        for refiner in refiners:
            for segmenter in segmenters:
                given = {"refiner": refiner, "segmenter": segmenter}
                reached |= {keys for keys, _ in leaves(presets.settings(name, method, given))}
    variants = []
    for method, by_name in content.get("variants", {}).items():
        for variant, source in by_name.items():
            variants.append(source)
            given = {"classifier": {"variant": variant}}
            reached |= {keys for keys, _ in leaves(presets.settings(name, method, given))}
    endings = {keys[n:] for keys in reached for n in range(len(keys))}
    of_kinds, of_methods = (content.get(section, {}).values() for section in ("kinds", "methods"))
    for source in (content.get("common", {}), *of_kinds, *of_methods, *variants):
        for keys, _ in leaves(source):
            assert keys in endings or keys[-1] == "kind", keys


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", RUNS)
def test_every_preset_gives_values_that_the_settings_accept(name, method):
    refiners, segmenters = (kinds(registry.shared_section(part).kind) for part in ("refiner", "segmenter"))
    for refiner, segmenter in zip(itertools.cycle(refiners), segmenters):
        _, chosen = parsed(f"run {method}", "--preset", name, "--refiner", refiner, "--segmenter", segmenter)
        for section in chosen.mirrors:
            if section != "tagger":
                chosen.build(section)


def test_files_override_a_preset_and_flags_override_files(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("classifier: {training: {epochs: 3, lr: 0.25}}\n")
    quick = presets.settings("quick", "cam", {})["classifier"]
    words = ["run", "cam", "--preset", "quick", "--config", str(file), "--classifier.training.lr", "0.5"]
    training = printed(capsys, *words)["classifier"]["training"]
    assert (training["epochs"], training["lr"], training["warmup"]) == (3, 0.5, quick["training"]["warmup"])
    # a file alone lies over the published defaults
    assert printed(capsys, *words[:2], *words[4:])["classifier"]["backbone"] == "resnet50"
    assert printed(capsys, *words)["classifier"]["backbone"] == quick["backbone"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("train", "cam"), ("backbone",)),
        (("localize", "cam"), ("scales",)),
        (("segment",), ("segmenter", "network", "backbone")),
    ],
)
def test_single_stages_have_their_part_of_a_preset(words, keys, capsys):
    section = {"train": ("classifier",), "localize": ("inference",), "segment": ()}[words[0]]
    expected = at(presets.settings("quick", "cam", {}), (*section, *keys))
    assert at(printed(capsys, *words, "--preset", "quick"), keys) == expected


def test_variants_have_their_own_settings(capsys):
    """WeCLIP's learning rate is ten times that of WeCLIP+, in a run and in a single training."""
    run = ("run", "weclip", "--preset", "paper", "--classifier.variant")
    assert [printed(capsys, *run, name)["classifier"]["training"]["lr"] for name in ("weclip", "weclip+")] == [
        2e-3,
        2e-4,
    ]
    single = printed(capsys, "train", "weclip", "--preset", "paper", "--variant", "weclip")
    assert (single["training"]["lr"], single["training"]["batch"], single["training"]["steps"]) == (2e-3, 4, 30_000)
    assert printed(capsys, *run, "weclip", "--classifier.training.lr", "0.5")["classifier"]["training"]["lr"] == 0.5


def test_another_segmenter_gets_what_of_a_preset_it_has(capsys):
    other = printed(capsys, "run", "cam", "--preset", "quick", "--segmenter", "emanet")["segmenter"]
    assert (other["kind"], other["network"]["backbone"], other["training"]["epochs"]) == ("emanet", "resnet10t", 8)
    assert "atrous_rates" not in other["network"]


def test_no_preset_needs_a_file_of_its_authors_but_paper(capsys):
    for method in RUNS:
        for name in NAMES:
            content = printed(capsys, "run", method, "--preset", name)
            files = [value for keys, value in leaves(content) if str(value).endswith((".pth", ".params", ".pt"))]
            body = [value for keys, value in leaves(content) if value in ("resnet38", "deeplab-resnet101")]
            assert name == "paper" or not files + body, (method, name, files, body)


def test_what_is_chosen_where_nothing_is_asked_for(tmp_path, monkeypatch):
    choose = MethodPresets("cam").choose
    monkeypatch.setattr(presets, "_has_cuda", lambda: False)
    assert choose({}, False) == ("small-cpu", "no CUDA device")
    monkeypatch.setattr(presets, "_has_cuda", lambda: True)
    assert choose({}, False)[0] == "gpu"
    assert choose({"device": "cpu"}, False) == ("small-cpu", "--device cpu")
    assert choose({}, True)[0] is None
    assert choose({"preset": "paper"}, True)[0] == "paper"
    # a run goes on with what it began with, on another computer too
    (tmp_path / RECORDED).write_text("preset: quick\n")
    assert choose({"out": tmp_path}, False)[0] == "quick"


def test_files_of_the_package_are_found_by_name(capsys):
    content = yaml.safe_load((CONFIGS / "demo_cam.yaml").read_text())
    for name in ("demo_cam", "demo_cam.yaml"):
        both = printed(capsys, "run", "cam", "--config", name)
        assert all(at(both, keys) == value for keys, value in leaves(content))
    with pytest.raises(BadInput, match="no such file") as caught:
        printed(capsys, "run", "cam", "--config", "demo_cma")
    assert caught.value.do == "Did you mean demo_cam?"


def test_a_path_is_never_taken_for_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("demo_cam").write_text("classifier: {backbone: resnet34}\n")
    assert printed(capsys, "run", "cam", "--config", "demo_cam")["classifier"]["backbone"] == "resnet34"


def test_a_setting_of_the_default_refiner_keeps_that_refiner(capsys):
    """`quick` has a dense CRF for all methods; a setting of IRNet, the default of CLIMS, selects IRNet."""
    words = ("run", "clims", "--preset", "quick")
    assert printed(capsys, *words)["refiner"]["kind"] == "crf"
    assert printed(capsys, *words, "--refiner.walk.beta", "3")["refiner"]["kind"] == "irnet"


def test_all_methods_have_the_preset_below_common_settings(capsys):
    tables = {name: registry.sections(registry.declared_method(name)) for name in RUNS}
    preset = functools.partial(presets.settings, "quick")
    common = {"training": {"epochs": 2}, "refiner": {"threshold": 0.3}}
    planned = {one.name: one for one in protocol.plan(tables, common, {}, None, dotted, preset)}
    training = planned["cam"].content["classifier"]["training"]
    assert (training["epochs"], training["optimizer"]) == (2, "adamw")
    assert planned["vwl"].content["refiner"] == {"kind": "crf", "threshold": 0.3}
    for one in planned.values():
        assert one.settings(tables)["segmenter"].kind == ("weclip" if one.name == "weclip" else "deeplab")
    assert printed(capsys, "run", "all", "--preset", "quick")["preset"] == "quick"


@pytest.mark.parametrize("method", ["cam", None])
def test_a_head_that_goes_on_keeps_the_layers_of_its_file(method):
    """What the preset says about a new head on a frozen network is not asked of one that is there already."""
    new, further = (
        presets.settings("quick", method, {"segmenter": {"kind": "frozen", **given}})["segmenter"]
        for given in ({}, {"init": "runs/mine/segmenter"})
    )
    assert {*new} - {*further} == {"features", "network"}
    assert further["training"] == new["training"]
