"""The wheel that people install: everything that the package reads is in it, and it works outside of this folder."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from wsss.demo import METHODS

ROOT = Path(__file__).parents[1]


def succeed(*words: object, cwd: Path) -> str:
    """Run a command that has to succeed; gives what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that nothing of the building stays here."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "wsss", source / "wsss", ignore=shutil.ignore_patterns("__pycache__"))
    # the setuptools that are installed: building takes no network
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    succeed(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, ".", cwd=source)
    (built,) = made.glob("*.whl")
    return built


@pytest.mark.whole
def test_the_wheel_holds_every_file_of_the_package(wheel):
    here = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "wsss").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if name.startswith("wsss/")}
        about = {name.partition("/")[2] for name in archive.namelist() if not name.startswith("wsss/")}
    assert packed == here
    assert {"licenses/LICENSE", "METADATA", "entry_points.txt"} <= about


@pytest.mark.slow
def test_an_installed_wheel_runs_the_quick_demo_in_another_folder(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    succeed(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # torch and the others come from the environment that runs the tests; the lines of a .pth file go to the end of the path, and
    # no .pth file in the folders that they name is read, such as the one of an editable install
    (installed,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (installed / "others.pth").write_text("".join(f"{path}\n" for path in others))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert succeed(python, "-c", "import wsss; print(wsss.__file__)", cwd=elsewhere).startswith(str(installed))
    printed = succeed(python.with_name("wsss"), "demo", "--quick", "--device", "cpu", "--out", "demo", cwd=elsewhere)
    for method in METHODS:
        assert f"$ wsss run {method} " in printed
        assert (elsewhere / "demo" / method / "report.html").stat().st_size > 10_000
    assert printed.count("\npredictions ") == 3
    assert os.listdir(elsewhere) == ["demo"]
