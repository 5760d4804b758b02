"""A pytest plugin: the run fails where a fixture file holds an array that no test has looked at.

A family of fixtures is a folder of tests/parity/data. It is judged when all tests of all modules that name it have run, in
whichever worker, and passed: so a run of chosen tests is never blamed, and one of whole modules is always judged.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from tests.parity import exempt, fixtures

TESTS = Path(__file__).parents[1]
KEY = "fixtures"
# these options run some of the collected tests only, without saying which are left out
PARTIAL = ("collectonly", "setuponly", "setupplan", "lf")


class Run:
    """What has happened in this process and in its workers."""

    def __init__(self) -> None:
        self.looked_at: dict[str, set[str]] = fixtures.looked_at
        self.whole: set[str] = set()  # modules of which every test that is not slow was to run
        self.deselected: dict[str, bool] = {}  # module: whether all its left out tests are slow
        self.verdict: list[str] = []

    @property
    def without_slow(self) -> bool:
        return any(self.deselected.values())


RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = Run()


def pytest_deselected(items: Collection[pytest.Item]) -> None:
    for item in items:
        deselected = item.config.stash[RUN].deselected
        slow = item.get_closest_marker("slow") is not None
        deselected[str(item.path)] = deselected.get(str(item.path), True) and slow


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if any(config.getoption(name, False) for name in PARTIAL):
        return
    chosen = {str((config.invocation_params.dir / arg.split("::")[0]).resolve()) for arg in config.args if "::" in arg}
    run = config.stash[RUN]
    modules = {str(item.path) for item in session.items}
    run.whole = {m for m in modules if run.deselected.get(m, True)} - chosen


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """A worker of pytest-xdist has ended."""
    run, sent = node.config.stash[RUN], getattr(node, "workeroutput", {}).get(KEY)
    if sent:
        for name, keys in sent["looked_at"].items():
            run.looked_at.setdefault(name, set()).update(keys)
        run.whole, run.deselected = set(sent["whole"]), sent["deselected"]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    run = session.config.stash[RUN]
    if hasattr(session.config, "workeroutput"):
        looked_at = {name: sorted(keys) for name, keys in run.looked_at.items()}
        session.config.workeroutput[KEY] = {
            "looked_at": looked_at,
            "whole": sorted(run.whole),
            "deselected": run.deselected,
        }
    elif exitstatus == pytest.ExitCode.OK:
        families = [family for family, modules in users().items() if modules and modules <= run.whole]
        run.verdict = list(complaints(contents(families), run.looked_at, run.without_slow))
        if run.verdict:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for complaint in terminalreporter.config.stash[RUN].verdict:
        terminalreporter.write_line(f"FAILED fixtures: {complaint}", red=True)


def users() -> dict[str, set[str]]:
    """The modules that name each family."""
    found: dict[str, set[str]] = {folder.name: set() for folder in fixtures.DATA.iterdir()}
    for module in TESTS.rglob("test_*.py"):
        source = module.read_text(encoding="utf-8")
        if re.search(r"import (\w+, )*fixtures\b", source):
            for family in re.findall(r"""["']([\w-]+)/""", source):
                found.get(family, set()).add(str(module))
    return found


def contents(families: Collection[str]) -> dict[str, set[str]]:
    """Every file of these families, with the names of its arrays."""
    held = {}
    for file in sorted(path for family in families for path in (fixtures.DATA / family).iterdir()):
        name = f"{file.parent.name}/{file.name}"
        held[name] = {fixtures.WHOLE}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                held[name] = set(stored.files)
    return held


def complaints(
    held: Mapping[str, set[str]], looked_at: Mapping[str, set[str]], without_slow: bool = False
) -> Iterator[str]:
    """What is wrong with the tests of these files.

    Args:
        held: the names of each file's arrays.
        looked_at: those that tests have read.
        without_slow: whether slow tests were left out, so that what only they look at is excused.
    """
    for name, keys in held.items():
        unseen = keys - looked_at.get(name, set())
        reasons = exempt.NEVER.get(name, {})
        excused = {*reasons, *(exempt.SLOW.get(name, ()) if without_slow else ())}
        hidden = {key for key in unseen if any(fnmatchcase(key, pattern) for pattern in excused)}
        if unseen > hidden:
            yield f"{name}: no test looks at {', '.join(sorted(unseen - hidden))}"
        for pattern in excused:
            stale = [key for key in keys if fnmatchcase(key, pattern) and key not in unseen]
            if stale or not any(fnmatchcase(key, pattern) for key in keys):
                found = f"a test looks at {', '.join(sorted(stale))}" if stale else "there is no such array"
                yield f"{name}: exempt.py names {pattern}, but {found}"
        yield from (f"{name}: exempt.py gives no reason for {p}" for p, reason in reasons.items() if not reason.strip())
    families = {name.split("/")[0] for name in held}
    for name in {*exempt.NEVER, *exempt.SLOW} - set(held):
        if name.split("/")[0] in families:
            yield f"{name}: exempt.py names it, but there is no such file"
