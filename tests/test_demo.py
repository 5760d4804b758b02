"""The command lines of the demo; `tests/test_wheel.py` runs them out of a wheel."""

from itertools import pairwise
from pathlib import Path

import pytest

from wsss.cli import _commands, _parsed
from wsss.demo import commands


@pytest.mark.parametrize("quick", [False, True])
def test_each_command_of_the_demo_is_one_that_the_command_line_accepts(tmp_path, quick):
    known = _commands()
    for words in commands(tmp_path, quick):
        name = " ".join(words[:2])
        assert _parsed(name, known[name], words[2:])


def test_the_quick_demo_trains_less_on_fewer_pictures(tmp_path):
    def trained(quick):
        known = _commands()
        shapes, cam, _ = [_parsed(" ".join(w[:2]), known[" ".join(w[:2])], w[2:]) for w in commands(tmp_path, quick)]
        classifier = cam.chosen.classifier.training
        return shapes.train + shapes.val, classifier.epochs

    whole, quick = trained(False), trained(True)
    assert quick[0] * 10 <= whole[0]
    assert quick[1] * 3 <= whole[1]


def test_what_the_demo_reads_comes_with_the_package(tmp_path):
    read = [
        Path(word)
        for words in commands(tmp_path)
        for flag, word in pairwise(words)
        if flag in ("--config", "--inference.clip", "--inference.words")
    ]
    assert len(read) == 4
    assert all(path.exists() for path in read)
