"""Help pages, misspelt words, and that none of them waits for torch."""

import shutil
import subprocess
import sys

import pytest

from tests.test_declared import agree
from wsss import declared, registry, settings
from wsss.cli import main
from wsss.commands import commands
from wsss.methods import METHODS, method
from wsss.recipe import settings_of

# all that takes seconds to import
HEAVY = ("torch", "torchvision", "timm", "accelerate", "transformers", "starlette", "uvicorn")
LIGHT = """
import sys
from wsss.cli import main
for words in {lines!r}:
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == {status}, (words, status)
    heavy = sorted(set({heavy!r}) & set(sys.modules))
    assert not heavy, (words, heavy)
"""


def light(lines, status=0, heavy=HEAVY):
    """Run command lines in a process of their own that must not import anything heavy; gives what they printed."""
    code = LIGHT.format(lines=[[str(word) for word in words] for words in lines], status=status, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_help_of_every_command_needs_no_torch():
    lines = [["--help"], ["--version"], ["run", "--help"]]
    for name in commands():
        lines += [[*name.split(), "--help"], [*name.split(), "--help-all"]]
    assert "wsss run cam" not in light([["--help"]]).stdout
    # an export's help lists the options of its format, whose module draws masks
    arrays = [line for line in lines if line[:2] not in (["export", "masks"], ["import", "masks"])]
    assert "run cam" in light(arrays, heavy=(*HEAVY, "numpy", "PIL", "jaxtyping")).stdout
    assert "export masks" in light([line for line in lines if line not in arrays]).stdout


def test_misspelt_words_and_printed_settings_need_no_torch():
    misspelt = [
        ["rnu", "cam"],
        ["run", "cam", "--dta", "x"],
        ["run", "qa_clims", "--data", "D", "--out", "O", "--refiner.wakl", "3"],
        ["segment", "--data", "D", "--out", "O", "--masks", "M", "--segmenter", "emane"],
        ["run", "all", "--comon.backbone", "x"],
    ]
    errors = light(misspelt, status=2, heavy=(*HEAVY, "numpy", "PIL", "jaxtyping")).stderr.splitlines()
    assert len(errors) == len(misspelt)
    assert all(line.startswith("wsss: error: ") for line in errors)
    assert all(len(line) < 150 for line in errors)
    for word in ("run cam", "--data", "--refiner.walk", "'emanet'", "--common"):
        assert any(f"Did you mean {word}?" in line for line in errors), word
    assert "kind: emanet" in light([["segment", "--segmenter", "emanet", "--print_config"]]).stdout


def test_an_overview_of_a_data_set_needs_no_torch(pictures):
    (pictures / "cat" / "notes.jpg").write_text("not a picture")
    found = light([["data", "info", pictures]], status=2, heavy=(*HEAVY, "jaxtyping", "yaml"))
    assert "notes.jpg: found no picture" in found.stdout


def test_weights_that_cannot_be_had_are_named_without_torch(pictures, tmp_path, monkeypatch):
    for name in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing answers there
    data = ["--data", pictures, "--out", tmp_path / "run", "--preset"]
    few = ["--classifier.training.batch=4", "--segmenter.training.batch=4"]
    lines = [
        ["run", "cam", *data, "small-cpu", *few],
        ["run", "cam", *data, "quick", *few],
        ["train", "cam", *data, "quick", "--training.batch", "4"],
        ["train", "clims", *data, "quick", "--training.batch", "4"],
        ["run", "clip_es", *data, "quick", few[1]],
    ]
    first, second, third, fourth, *rest = light(lines, status=2).stderr.split("wsss: error: ")[1:]
    assert "resnet18-f37072fd.pth: found no file" in first
    assert "--classifier.init FILE" in first
    assert "models--timm--resnet10t.c3_in1k" in second
    assert "--init FILE" in third
    assert "init: found `baseline`" in fourth
    assert "CLIP openai/clip-vit-base-patch32: found none in" in fourth
    both = " ".join(rest)
    assert "CLIP openai/clip-vit-base-patch16: found none in" in both
    assert "--segmenter.init FILE" in both


def test_pictures_without_tags_are_refused_at_once_with_what_is_missing(pictures, tmp_path):
    (tmp_path / "flat").mkdir()
    shutil.copy(pictures / "cat" / "0.jpg", tmp_path / "flat")
    run = ["run", "clip_es", "--data", tmp_path / "flat", "--out", tmp_path / "run"]
    missing = (
        ([], "add --tags tagclip and --classes 'cat, dog'."),
        (["--classes", "a, b"], "add --tags tagclip."),
    )
    for words, message in missing:
        for line in (
            light([[*run, *words]], status=2).stderr,
            light([["data", "info", run[3], *words]], status=2).stderr,
        ):
            assert line.endswith(f"{message}\n"), line
    assert not (tmp_path / "run").exists()
    assert "2 classes: a, b" in light([["data", "info", run[3], "--classes", "a, b", "--tags", "tagclip"]]).stdout


def test_predictions_of_resnets_wait_for_no_library_of_other_networks():
    others = {"torchvision", "timm", "transformers", "scipy.sparse", "scipy.ndimage", "matplotlib", "rich"}
    code = f"import sys, wsss.stages.predict; found = set(sys.modules) & {others}; assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_package_alone_is_light():
    code = f"import sys, wsss; assert not set(sys.modules) & {set(HEAVY) | {'numpy', 'PIL'}}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def page(capsys, monkeypatch, name, *words):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        commands()[name].parser(name).parse(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", commands())
def test_help_fits_a_screen_and_says_where_the_rest_is(name, capsys, monkeypatch):
    short = page(capsys, monkeypatch, name, "--help")
    assert short.count("\n") <= 60
    assert all(len(line) <= 80 for line in short.splitlines())
    parser = commands()[name].parser(name)
    required = [argument for argument in parser.arguments.values() if argument.required]
    assert all(argument.flag in short for argument in required)
    full = page(capsys, monkeypatch, name, "--help-all")
    flags = [{line.split()[0] for line in text.splitlines() if line.startswith("  --")} for text in (short, full)]
    assert flags[0] <= flags[1]
    assert (f"`wsss {name} --help-all` lists" in " ".join(short.split())) == (flags[0] < flags[1])
    assert all(argument.flag in full for argument in parser.arguments.values())


def test_often_changed_settings_are_on_the_short_page(capsys, monkeypatch):
    cam = page(capsys, monkeypatch, "run cam", "--help")
    for flag in ("data", "out", "classifier.backbone", "classifier.init", "classifier.training.epochs", "classifier.training.batch",
                 "classifier.training.lr", "classifier.training.seed", "inference.scales", "refiner", "segmenter"):  # fmt: skip
        assert f"--{flag} " in cam
    alone = page(capsys, monkeypatch, "train cam", "--help")
    assert "--backbone " in alone
    assert "--augment.crop " in alone
    assert "--refiner {crf,irnet,affinitynet,regions}" in page(capsys, monkeypatch, "refine", "--help")


@pytest.mark.parametrize("name", commands())
def test_the_long_help_page_names_every_setting_of_what_is_chosen(name, capsys, monkeypatch):
    full = page(capsys, monkeypatch, name, "--help-all")
    parser = commands()[name].parser(name)

    def flags(value, keys):
        for key in settings.fields(type(value)):
            inner = getattr(value, key)
            if declared.is_mirror(type(inner)):
                yield from flags(inner, (*keys, key))
            elif key != "kind":
                yield ".".join((*keys, key))

    for section, field in parser.settings.below.items():
        if declared.is_mirror(type(field.default)):
            assert all(f"--{flag} " in full for flag in flags(field.default, (section,)))
    if parser.settings.top is not None:
        assert all(f"--{flag} " in full for flag in flags(parser.settings.top, ()))


def test_the_long_help_page_is_of_the_chosen_refiner_and_segmenter(capsys, monkeypatch):
    usual = page(capsys, monkeypatch, "run cam", "--help-all")
    chosen = page(capsys, monkeypatch, "run cam", "--refiner", "irnet", "--segmenter", "emanet", "--help-all")
    for flag, where in (
        ("--refiner.walk.beta ", chosen),
        ("--segmenter.network.bases ", chosen),
        ("--segmenter.head_lr ", usual),
    ):
        other = usual if where is chosen else chosen
        assert flag in where
        assert flag not in other
    assert "background score" in usual


@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_knows_what_the_methods_say_of_themselves(name):
    """Names, types, defaults and kinds of all settings, of every command of the method."""
    mirror, real = registry.sections(registry.declared_method(name)), registry.sections(method(name))
    assert list(mirror) == list(real)
    for section, field in mirror.items():
        other = real[section]
        assert settings.from_mirror(field.default) == other.default
        for kind, its in zip(settings.members(field.kind), settings.members(other.kind), strict=True):
            if declared.is_mirror(kind):
                agree(kind, its)
            else:
                assert kind == its
    if "inference" in real:
        assert list(settings.fields(settings_of(method(name)))) == list(real)
    assert registry.declared_method(name).paper == method(name).paper


@pytest.mark.parametrize("name", ["tag", "ask", "refine", "segment", "predict", "evaluate"])
def test_the_command_line_knows_the_settings_of_single_stages(name):
    chosen = commands()[name].parser(name).settings
    top = () if chosen.top is None else (type(chosen.top),)
    for kind in (*top, *(member for field in chosen.below.values() for member in settings.members(field.kind))):
        agree(kind, declared.real(kind))


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name.split()[0]} METHOD " in overview or f"  {name} " in overview for name in commands())
    assert all(f"\n  {name} " in overview for name in METHODS)
    assert main(["run", "--help"]) == 0
    assert "run clims" in capsys.readouterr().out
