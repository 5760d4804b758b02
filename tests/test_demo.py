"""The command lines of the demo; `tests/test_wheel.py` runs them out of a wheel."""

from itertools import pairwise
from pathlib import Path

import pytest

from wsss import demo, hub
from wsss.commands import command
from wsss.demo import commands
from wsss.errors import BadInput
from wsss.registry import check_downloads, needed


def parsed(words):
    """Options and settings of a command line."""
    name, found = command(words)
    return found.parser(name).parse(words[len(name.split()) :])


@pytest.mark.parametrize("quick", [False, True])
def test_each_command_of_the_demo_is_one_that_the_command_line_accepts(tmp_path, quick):
    assert [parsed(words)[0].out.name for words in commands(tmp_path, quick)] == [
        "shapes", "cam", "clip_es", "recam", tmp_path.name, "prediction",
    ]  # fmt: skip


def test_the_quick_demo_trains_less_on_fewer_pictures(tmp_path):
    def pictures_and_epochs(quick):
        (shapes, _), (_, cam), *_ = map(parsed, commands(tmp_path, quick))
        return shapes.train + shapes.val, cam.mirrors["classifier"].training.epochs

    whole, quick = pictures_and_epochs(False), pictures_and_epochs(True)
    assert quick[0] * 5 <= whole[0]
    assert quick[1] * 3 <= whole[1]


@pytest.mark.parametrize("native", [False, True])
def test_the_demo_computes_in_bfloat16_only_where_the_processor_has_it(tmp_path, monkeypatch, native):
    monkeypatch.setattr(demo, "has_native", lambda precision: native)
    for _, chosen in [parsed(words) for words in commands(tmp_path) if words[0] == "run"]:
        sections = chosen.mirrors
        trained = [sections[name].training for name in ("classifier", "segmenter") if name in sections]
        found = {section.precision for section in (sections["inference"], sections["test"], *trained)}
        assert found == {"bf16" if native else "no"}


def test_the_demo_needs_no_weights_of_others(tmp_path, monkeypatch):
    def missing(backbone, setting):
        raise BadInput(setting, f"no weights of {backbone}", "these weights", "Download them.")

    monkeypatch.setattr(hub, "check_imagenet", missing)
    for words in (words for words in commands(tmp_path) if words[0] == "run"):
        check_downloads(needed(words[1], parsed(words)[1].mirrors))
    # a baseline that is trained does need them
    recam = ["run", "recam", "--data", str(tmp_path), "--out", str(tmp_path), "--preset", "paper"]
    with pytest.raises(BadInput, match=r"baseline\.init: found no weights of resnet50"):
        check_downloads(needed("recam", parsed(recam)[1].mirrors))


def test_what_the_demo_reads_comes_with_the_package(tmp_path):
    flags = ("--config", "--inference.clip", "--inference.words")
    read = [Path(word) for words in commands(tmp_path) for flag, word in pairwise(words) if flag in flags]
    assert len(read) == 5
    assert all(path.exists() for path in read)
