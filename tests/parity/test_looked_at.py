"""Arrays of fixtures that no test looks at: runs of whole modules fail, runs of chosen tests do not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity import exempt, fixtures, looked_at

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
CONFTEST = """
from pathlib import Path
from tests.parity import exempt, fixtures, looked_at

fixtures.DATA = Path(__file__).parent / "data"
looked_at.TESTS = Path(__file__).parent
exempt.NEVER = {"fruit/basket.npz": {"seed_*": "drawn by the tests themselves"}}
exempt.SLOW = {"fruit/basket.npz": ("slow",)}
pytest_plugins = ["tests.parity.looked_at"]
"""
FIRST = """
import pytest
from tests.parity import fixtures

BASKET = fixtures.arrays("fruit/basket")
AT_IMPORT = BASKET["pear"]

def test_apple():
    assert BASKET["apple"] == 1
    assert "pear" in list(BASKET)

@pytest.mark.slow
def test_slow():
    assert BASKET["slow"] == 4
"""
SECOND = """
from tests.parity import fixtures

def test_pear():
    assert fixtures.arrays("fruit/basket")["pear"] == 2
"""
UNRELATED = """
def test_nothing():
    pass
"""


@pytest.fixture
def tree(pytester, monkeypatch):
    """A folder of tests with a family of fixtures; what the plugin holds for the tests around it is put back."""
    for module, name in (
        (fixtures, "DATA"),
        (fixtures, "looked_at"),
        (looked_at, "TESTS"),
        (exempt, "NEVER"),
        (exempt, "SLOW"),
    ):
        monkeypatch.setattr(module, name, {})
    pytester.mkdir("data")
    folder = pytester.mkdir("data/fruit")
    np.savez(folder / "basket.npz", apple=1, pear=2, seed_a=3, slow=4)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_first=FIRST, test_second=SECOND, test_unrelated=UNRELATED)
    pytester.makeini("[pytest]\nmarkers = slow")
    return pytester


def without_pear(tree) -> None:
    tree.makepyfile(test_second=SECOND.replace('["pear"] == 2', '["apple"] == 1'))


def run(tree, *arguments: str) -> tuple[bool, bool]:
    """Whether the run failed, and whether it said that nobody looks at the pear."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # of the test around it
    done = tree.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:unraisableexception", *arguments)
    return done.ret == pytest.ExitCode.TESTS_FAILED, "no test looks at pear" in done.stdout.str()


def test_what_several_workers_look_at_is_judged_together(tree):
    del os.environ["PYTEST_CURRENT_TEST"]
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow"]
    ran = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "timeout": 120}
    assert subprocess.run(command, check=False, **ran).returncode == 0
    without_pear(tree)
    failed = subprocess.run(command, check=False, **ran)
    assert failed.returncode == 1
    assert "FAILED fixtures: fruit/basket.npz: no test looks at pear" in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "judged"),
    [
        (("test_first.py", "test_second.py"), True),
        ((), True),
        (("-m", "not slow"), True),
        (("test_first.py",), False),
        (("test_unrelated.py",), False),
        (("test_first.py::test_apple", "test_second.py"), False),
        (("-k", "second"), False),
        (("-m", "slow"), False),
        (("--collect-only",), False),
        (("--setup-only",), False),
    ],
)
def test_only_whole_modules_are_judged(tree, arguments, judged):
    without_pear(tree)
    assert run(tree, *arguments) == (judged, judged)


def test_a_failing_test_is_the_only_complaint(tree):
    without_pear(tree)
    tree.makepyfile(test_first=FIRST.replace('["apple"] == 1', '["apple"] == 5'))
    assert run(tree) == (True, False)


@pytest.mark.parametrize(
    ("seen", "without_slow", "complaint"),
    [
        ({"apple", "pear", "slow"}, False, None),
        ({"apple", "pear"}, True, None),
        ({"apple", "slow"}, False, "no test looks at pear"),
        ({"apple", "pear"}, False, "no test looks at slow"),
        ({"apple", "pear", "slow"}, True, "exempt.py names slow, but a test looks at slow"),
        ({"apple", "pear", "slow", "seed_a"}, False, "exempt.py names seed_*, but a test looks at seed_a"),
    ],
)
def test_complaints(monkeypatch, seen, without_slow, complaint):
    monkeypatch.setattr(exempt, "NEVER", {"fruit/basket.npz": {"seed_*": "drawn by the tests themselves"}})
    monkeypatch.setattr(exempt, "SLOW", {"fruit/basket.npz": ("slow",)})
    held = {"fruit/basket.npz": {"apple", "pear", "slow", "seed_a"}}
    found = list(looked_at.complaints(held, {"fruit/basket.npz": seen}, without_slow))
    assert found == ([f"fruit/basket.npz: {complaint}"] if complaint else [])


@pytest.mark.parametrize(
    ("name", "pattern", "reason", "complaint"),
    [
        ("fruit/basket.npz", "plum", "rotten", "exempt.py names plum, but there is no such array"),
        ("fruit/bowl.npz", "*", "broken", "exempt.py names it, but there is no such file"),
        ("fruit/basket.npz", "apple", " ", "exempt.py gives no reason for apple"),
    ],
)
def test_exemptions_that_hide_nothing(monkeypatch, name, pattern, reason, complaint):
    monkeypatch.setattr(exempt, "NEVER", {name: {pattern: reason}})
    monkeypatch.setattr(exempt, "SLOW", {})
    seen = set() if pattern == "apple" else {"apple"}
    found = list(looked_at.complaints({"fruit/basket.npz": {"apple"}}, {"fruit/basket.npz": seen}))
    assert found == [f"{name}: {complaint}"]


def test_every_family_is_named_by_a_module():
    assert all(looked_at.users().values())
