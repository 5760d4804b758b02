"""Settings read from source: the same as those of the imported module, and a clear error where that cannot be."""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from wsss import declared, settings
from wsss.errors import BadInput

# what a newcomer's method file may look like; importing it fails
METHOD = '''
"""A method (Somebody et al., 2026), and how it works.

More about it.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from wsss.errors import check_range
from wsss.run import maybe_file

from .PARTS import Base as Common, DEFAULTS, Walk
from PACKAGE import PARTS as parts

if TYPE_CHECKING:
    from collections.abc import Sequence

raise RuntimeError("this module was imported")

Variant = Literal["small", "large"]
LOW, HIGH = 0.25, 0.75
SCALES = tuple(round(0.5 * step, 2) for step in range(1, 4))


class Network(nn.Module):
    """Layers."""

    def forward(self, x):
        return x


def weighted(default, times=2):
    """A number that is doubled."""
    return dataclasses.field(default=default * times, metadata={"maybe_file": True})


def elaborate(x):
    y = x + 1
    return y


@dataclass(frozen=True)
class ReCAM(Common):
    """What is trained."""

    about: ClassVar[str] = "no setting"

    variant: Variant = "small"
    """which one,
    in two lines"""
    # a comment in between
    span: tuple[float, float] = (LOW, HIGH)
    rate: float = weighted(0.5)
    scales: tuple[float, ...] = SCALES
    angle: float = math.pi / 2
    """half a turn"""
    init: str = maybe_file("imagenet")
    walk: Walk = Walk(beta=-8.0)
    other: "Walk | parts.Jump" = DEFAULTS.walk
    place: Path | None = None

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0, 1)

    def network(self):
        return Network()


METHOD = Method(name="recam", settings=ReCAM(variant="large"), load=partial(elaborate, 1), make=ReCAM.network, plain=lambda x: x)
'''.lstrip()

PARTS = '''
import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk."""

    kind: Literal["walk"] = "walk"
    beta: float = 10.0
    """the exponent"""


@dataclasses.dataclass(frozen=True)
class Jump:
    kind: Literal["jump"] = "jump"
    far: int = 3


@dataclasses.dataclass(frozen=True)
class Base:
    seed: int = 0
    """of all chance"""


@dataclasses.dataclass(frozen=True)
class All:
    walk: Walk = dataclasses.replace(Walk(), beta=2)


DEFAULTS = All()
'''

_numbers = itertools.count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package with a method's module; gives the module's name."""

    def package(text, parts=PARTS):
        name = f"newcomer{next(_numbers)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "parts.py").write_text(parts)
        (tmp_path / name / "method.py").write_text(text.replace("PARTS", "parts").replace("PACKAGE", name))
        return f"{name}.method"

    monkeypatch.syspath_prepend(tmp_path)
    return package


def importable(text):
    return text.replace('raise RuntimeError("this module was imported")', "Method = dict")


def agree(mirror, real):
    """Assert that a mirror says the same of settings as their real class, and so for all settings in them; a default is the first choice."""
    assert (mirror.__name__, mirror.__module__) == (real.__name__, real.__module__)
    ours, theirs = settings.fields(mirror), settings.fields(real)
    assert list(ours) == list(theirs)
    for name, field in ours.items():
        other = theirs[name]
        assert field.path == other.path
        assert settings.from_mirror(field.default) == other.default
        kinds, others = settings.members(field.kind), settings.members(other.kind)
        for kind, its in zip(kinds, others, strict=True):
            if declared.is_mirror(kind):
                agree(kind, its)
            else:
                assert kind == its, name
                choices = get_args(its) if get_origin(its) is Literal else ()
                assert field.default not in choices or field.default == choices[0], name
    assert settings.from_mirror(mirror()) == real()


def test_a_mirror_is_like_the_real_class(package):
    module = package(importable(METHOD))
    mirror = declared.read(module, "ReCAM")
    assert module not in sys.modules
    real = declared.real(mirror)
    assert real is sys.modules[module].ReCAM
    agree(mirror, real)


def test_nothing_is_imported(package):
    module = package(METHOD)
    mirror = declared.read(module, "ReCAM")
    assert mirror(seed=3).span == (0.25, 0.75)
    assert (mirror().rate, mirror().angle) == (1.0, pytest.approx(1.5708, abs=1e-4))
    assert (mirror().walk.beta, mirror().other.beta) == (-8.0, 2)
    table = settings.fields(mirror)
    assert list(table)[:2] == ["seed", "variant"]
    assert (table["variant"].kind, table["variant"].help) == (Literal["small", "large"], "which one, in two lines")
    assert (table["angle"].help, table["seed"].help) == ("half a turn", "of all chance")
    assert (table["init"].path, table["rate"].path, table["span"].path) == (True, True, False)
    assert table["place"].kind == Path | None
    assert [kind.__name__ for kind in settings.members(table["other"].kind)] == ["Walk", "Jump"]
    assert not any(name.partition(".")[0] == module.partition(".")[0] for name in sys.modules)


def test_the_constants_of_a_module(package):
    module = package(METHOD)
    assert declared.read(module, "SCALES") == (0.5, 1.0, 1.5)
    assert declared.read(module, "LOW") == 0.25
    assert isinstance(declared.read(module, "Network"), declared.Opaque)
    assert isinstance(declared.read(module, "elaborate"), declared.Opaque)
    with pytest.raises(BadInput, match="found no Absent; expected Absent at the top"):
        declared.read(module, "Absent")
    with pytest.raises(BadInput, match="found no such module"):
        declared.read(f"{module}.deeper", "x")


def test_an_object_that_holds_settings_and_functions(package):
    fields = "".join(f"    {name}: object = None\n" for name in ("name", "settings", "load", "make", "plain"))
    kind = f"@dataclass(frozen=True)\nclass Method:\n{fields}\n\nMETHOD ="
    method = declared.read(package(METHOD.replace("METHOD =", kind)), "METHOD")
    assert method.name == "recam"
    assert method.settings.variant == "large"
    assert isinstance(method.load, declared.Opaque)
    assert isinstance(method.make, declared.Opaque)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x: float", r"found ReCAM \(non-default argument .x. follows"),
        ("x: float = elaborate(1)", r"found `elaborate\(...\)` for x; expected settings declared by plain values"),
        ("x: float = torch.pi", "found `torch.pi` for x"),
        ("x: tuple[float, ...] = (1.0, torch.pi)", "for x; expected settings declared by plain values"),
        ("x: torch.Tensor | None = None", "found x of the type `torch.Tensor`; expected int, float"),
        ("x: complex = 1j", "found x of the type `complex`"),
        ("x: nn.Module = Network()", "found x of the type"),
        ("x: Literal[1, 2] = 1", "found x of the type `typing.Literal"),
        ("x: Walk = Walk(gamma=1)", r"found `Walk\(gamma=1\)`, which fails \(TypeError: .*gamma"),
        ("x: float = 1 / 0", r"found `1 / 0`, which fails \(ZeroDivisionError"),
        ("x: int = unknown", "found `unknown` for x"),
        ("x: Walk | Common = Walk()", "found x, a union of dataclasses that do not all have a distinct `kind`"),
        ("x: list[int] = [1]", r"found ReCAM \(mutable default"),
        ("x: float = open('/etc/passwd')", r"found `open\(...\)` for x"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(package, line, message):
    module = package(METHOD.replace("    place: Path | None = None", f"    {line}"))
    with pytest.raises(BadInput, match=message) as caught:
        settings.fields(declared.read(module, "ReCAM"))
    file, _, number = caught.value.where.partition(", line ")
    assert file.endswith("method.py")
    source = Path(file).read_text().splitlines()[int(number) - 1]
    assert source in (f"    {line}", "class ReCAM(Common):")


def test_settings_that_go_on_from_another_program_s(package):
    module = package(METHOD.replace("class ReCAM(Common)", "class ReCAM(Common, torch.Settings)"))
    with pytest.raises(BadInput, match=r"found ReCAM, which inherits from torch\.Settings"):
        settings.fields(declared.read(module, "ReCAM"))


def test_a_declaration_in_a_circle_and_a_broken_file(package):
    module = package(METHOD.replace("LOW, HIGH = 0.25, 0.75", "LOW = HIGH\nHIGH = LOW"))
    with pytest.raises(BadInput, match="whose declaration refers to itself"):
        declared.read(module, "ReCAM")
    with pytest.raises(BadInput, match=r"method\.py: found .*invalid syntax"):
        declared.read(package("class :\n"), "x")


def test_real_settings_refuse_values_by_the_name_they_were_given(package):
    mirror = declared.read(package(importable(METHOD)), "ReCAM")
    with pytest.raises(BadInput, match=r"^classifier.rate: found 2.0; expected a number from 0 to 1"):
        settings.from_mirror(dataclasses.replace(mirror(), rate=2.0), ("classifier",))


def test_an_editable_installation_whose_packages_are_on_no_path(monkeypatch):
    """`from wsss import classifier`, as ReCAM has it, finds the module where it was imported from."""
    monkeypatch.setattr(sys, "path", [one for one in sys.path if not (Path(one) / "wsss").is_dir()])
    declared._find.cache_clear()
    found = declared._find("wsss")
    assert found is not None
    assert declared.is_mirror(found.classifier.FromBaseline)
    declared._find.cache_clear()
