"""Settings from plain values: types, unknown keys, names in errors; and that no setting of any command can hold more than plain values."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from wsss.arguments import Parser
from wsss.cli import _commands
from wsss.configs import CONFIGS
from wsss.errors import BadInput, check_range
from wsss.run import maybe_file
from wsss.settings import Given, build, fields, members, shown


@dataclasses.dataclass(frozen=True)
class Inner:
    """The inside."""

    rate: float = 0.5
    """how much"""
    steps: int | None = 3
    """how often"""
    pair: tuple[int, float] = (1, 2.0)
    """two"""

    def __post_init__(self) -> None:
        check_range("inner.rate", self.rate, 0, 1)


@dataclasses.dataclass(frozen=True)
class Outer:
    """The outside."""

    first: Inner = Inner(rate=0.25)
    """a part"""
    crf: Literal["irn", "psa"] | Inner | None = "irn"
    """a word or a part"""
    scales: tuple[float, ...] = (1.0,)
    """many"""
    name: str = "a"
    """a text"""
    init: str = maybe_file("none")
    """a word or a path"""
    mode: Literal["no", "off", "bf16"] = "no"
    """words that YAML 1.1 takes for false"""
    live: bool = False
    """yes or no"""
    where: Path | None = None
    """a place"""


def test_what_is_not_given_is_as_in_the_defaults_of_the_part():
    settings = build(
        Outer, {"first": {"steps": None}, "crf": {"steps": 7}, "scales": [1, 2.5], "live": "yes", "mode": "off"}
    )
    assert settings == Outer(first=Inner(0.25, None), crf=Inner(0.5, 7), scales=(1.0, 2.5), live=True, mode="off")
    assert type(settings.scales[0]) is float
    assert build(Outer, {"crf": None, "where": "x/y", "init": "caf\udce9"}) == Outer(
        crf=None, where=Path("x/y"), init="caf\udce9"
    )
    assert build(Outer, {}) == Outer()
    assert build(Outer, shown(Outer())) == Outer()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frist": {}}, "frist: found no such setting; expected one of first, .* Did you mean 'first'"),
        ({"first": {"step": 1}}, "first.step: found no such setting; .* Did you mean 'steps'"),
        ({"crf": {"step": 1}}, "crf.step: found no such setting; .* Did you mean 'steps'"),
        ({"first": {"rate": 2}}, "first.rate: found 2.0; expected a number from 0 to 1"),
        ({"crf": {"rate": -1}}, "crf.rate: found -1.0; expected a number from 0 to 1"),
        ({"first": {"rate": None}}, r"first.rate: found nothing \(null\); expected a number"),
        ({"first": {"rate": [1]}}, "first.rate: found a list of 1; expected a number"),
        ({"first": {"rate": True}}, "first.rate: found true; expected a number"),
        ({"first": {"rate": float("nan")}}, "first.rate: found nan, which is not finite"),
        ({"first": {"rate": float("inf")}}, "first.rate: found inf, which is not finite"),
        ({"first": {"steps": 1.0}}, "first.steps: found 1.0; expected a whole number or null"),
        ({"first": {"steps": "1"}}, "first.steps: found '1'; expected a whole number or null"),
        ({"first": {"steps": 10**90}}, "first.steps: found 1000.*, which is too large"),
        ({"first": {"steps": {"a": 1}}}, r"first.steps: found settings below it \(a\); expected a whole number or null"),
        ({"first": {"pair": [1]}}, "first.pair: found a list of 1; expected a list of 2 whole numbers"),
        ({"first": {"pair": ["x", 1]}}, "first.pair.0: found 'x'; expected a whole number"),
        ({"first": 5}, r"first: found 5; expected settings \(rate, steps, pair\)"),
        ({"first": None}, r"first: found nothing \(null\); expected settings"),
        ({"crf": "ir"}, r"crf: found 'ir'; expected one of irn, psa or settings .* Did you mean 'irn'"),
        ({"scales": 1}, "scales: found 1; expected a list of numbers"),
        ({"name": 3}, "name: found 3; expected a text. Put it in quotes"),
        ({"name": "\ud800"}, "name: found .*; expected a text"),
        ({"name": "caf\udce9"}, "name: found .*; expected a text"),
        ({"init": "\ud800"}, "init: found .*; expected a text"),
        ({"init": "a\0b"}, "init: found .*; expected a text"),
        ({"where": ""}, "where: found ''; expected a path or null"),
        ({"live": 1}, "live: found 1; expected true or false"),
        ({"mode": "of"}, "mode: found 'of'; expected one of no, off, bf16"),
        ({"first": {"class_path": "x"}}, "first.class_path: found the key `class_path`"),
        ({"__class__": "x"}, "__class__: found no such setting"),
    ],
)  # fmt: skip
def test_what_does_not_fit(content, message):
    with pytest.raises(BadInput, match=message):
        build(Outer, content)


def test_later_values_are_put_over_earlier_ones_and_know_where_they_stand():
    given = Given()
    given.add((), {"first": {"rate": 0.1, "steps": 1}, "crf": "psa"}, lambda keys: f"a.yaml: {'.'.join(keys)}")
    given.add(("first",), {"steps": "x"}, lambda keys: f"--{'.'.join(keys)}")
    assert given.content == {"first": {"rate": 0.1, "steps": "x"}, "crf": "psa"}
    with pytest.raises(BadInput, match=r"^--first.steps: found 'x'"):
        build(Outer, given.content, given.where)
    assert given.where(("first", "rate")) == "a.yaml: first.rate"
    assert given.where(("crf", "steps")) == "a.yaml: crf.steps"
    assert given.where(("name",)) == "name"


def parser_of(name: str) -> Parser:
    parser = Parser(name, "")
    _commands()[name].declare(parser)
    return parser


def leaves(kind: Any) -> list[Any]:
    """The types that values of a setting are read as."""
    if get_origin(kind) in (Union, types.UnionType):
        return [leaf for member in get_args(kind) for leaf in leaves(member)]
    if get_origin(kind) in (tuple, list):
        return [leaf for member in get_args(kind) if member is not Ellipsis for leaf in leaves(member)]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return [leaf for field in fields(kind).values() for leaf in leaves(field.kind)]
    return [Literal] if get_origin(kind) is Literal else [kind]


def parts(kind: Any) -> list[type]:
    own = [member for member in members(kind) if isinstance(member, type) and dataclasses.is_dataclass(member)]
    return own + [part for section in own for field in fields(section).values() for part in parts(field.kind)]


@pytest.mark.parametrize("name", _commands())
def test_no_setting_holds_more_than_plain_values(name):
    """Nothing is typed as anything, as a class or as something to be called: so no value can be read as one."""
    parser = parser_of(name)
    top = fields(parser.top) if parser.top else {}
    # no two of one name
    assert len(parser.table) == len(parser.arguments) + len(top) + len(parser.sections)
    for key, field in parser.table.items():
        found = leaves(field.kind)
        if key in ("common", "runs"):
            # plain values, which the settings of the methods read as theirs
            assert found == [dict]
        else:
            assert set(found) <= {bool, int, float, str, Path, type(None), Literal}
        for part in parts(field.kind):
            assert all(inner.default is not dataclasses.MISSING for inner in fields(part).values())
            # errors name what is not given as it should be; several parts would have to be told apart
            assert all(len(parts_of(inner.kind)) <= 1 for inner in fields(part).values())


def parts_of(kind: Any) -> list[Any]:
    return [member for member in members(kind) if dataclasses.is_dataclass(member)]


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that must not be imported, and a command line that must not import it."""
    (tmp_path / "canary.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "canary.X"
    assert "canary" not in sys.modules


def refused(name: str, *words: str) -> str:
    with pytest.raises(BadInput) as caught:
        parser_of(name).parse(["--data", "D", "--out", "O", *words])
    return str(caught.value)


CALL = "{class_path: canary.X, init_args: {x: 1}}"


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("run cam", ("--classifier", CALL), "--classifier.class_path: found the key `class_path`"),
        ("run cam", ("--classifier.class_path", "canary.X"), "--classifier.class_path: found the key"),
        ("run cam", ("--classifier.class_path=canary.X",), "--classifier.class_path: found the key"),
        ("run cam", ("--classifier.init_args.x", "1"), "--classifier.init_args.x: found the key `init_args`"),
        ("run cam", ("--classifier.dict_kwargs", "{}"), "found the key `dict_kwargs`"),
        ("run cam", ("--class_path", "canary.X"), "--class_path: found the key `class_path`"),
        ("run cam", ("--tail.segmenter.training", CALL), "--tail.segmenter.training.class_path: found the key"),
        ("run cam", ("--tail.refine.crf", CALL), "--tail.refine.crf.class_path: found the key"),
        ("run cam", ("--inference.scales", f"[{CALL}]"), "--inference.scales.0.class_path: found the key"),
        ("run cam", ("--config", f"classifier: {CALL}"), "--config: classifier.class_path: found the key"),
        ("run cam", ("--config", "a: !!python/name:canary.X"), "--config: a: found the YAML tag !!python/name:canary.X"),
        ("run cam", ("--tail.refine.threshold", "!!python/name:canary.X ''"), "found the YAML tag"),
        ("run cam", ("--tail.refine.crf", "canary.X"), "--tail.refine.crf: found 'canary.X'; expected one of irn"),
        ("run cam", ("--tail.refine.crf.help", "canary.X"), "--tail.refine.crf.help: found no such setting"),
        ("run cam", ("--tail.refine.crf.help=canary.X",), "--tail.refine.crf.help: found no such setting"),
        ("run cam", ("--classifier.help", "canary.X"), "--classifier.help: found no such setting"),
        ("run cam", ("--classifier+=canary.X",), "--classifier+: found no such flag"),
        ("run cam", ("--inference.scales+=canary.X",), "--inference.scales+: found no such setting"),
        ("run all", ("--common", CALL), "--common.class_path: found the key"),
        ("run all", ("--common", f"{{training: {CALL}}}"), "--common.training.class_path: found the key"),
        ("run all", ("--common.training.class_path", "canary.X"), "--common.training.class_path: found the key"),
        ("run all", ("--runs", f"{{cam: {CALL}}}"), "--runs.cam.class_path: found the key"),
        ("run all", ("--clip", CALL), "--clip.class_path: found the key"),
        ("run all", ("--clip.class_path", "canary.X"), "--clip.class_path: found the key"),
        ("train clip", ("--training", CALL), "--training.class_path: found the key"),
        ("refine", ("--irnet", CALL), "--irnet.class_path: found the key"),
        ("predict", ("--crf", CALL), "--crf.class_path: found the key"),
    ],
)  # fmt: skip
def test_no_flag_imports_anything(canary, name, words, message):
    words = [word for word in words if name != "predict" or word != "--data"]
    with pytest.raises(BadInput) as caught:
        parser_of(name).parse(words)
    assert message in str(caught.value)


@pytest.mark.parametrize("flag", ["--config", "--classifier", "--classifier.training"])
def test_no_file_imports_anything(canary, tmp_path, flag):
    path = tmp_path / "settings.yaml"
    for text, message in (
        (f"a: {CALL}", "a.class_path: found the key `class_path`"),
        ("!!python/name:canary.X", "the YAML tag"),
    ):
        path.write_text(text)
        error = refused("run cam", flag, str(path))
        assert error.startswith(str(path))
        assert message in error


def test_the_environment_is_no_way_in(canary, monkeypatch):
    for name in ("CONFIG", "CLASSIFIER", "CLASSIFIER__BACKBONE", "COMMON", "DEFAULT_ENV", "JSONARGPARSE_DEFAULT_ENV"):
        for prefix in ("", "WSSS_", "WSSS_RUN_CAM_"):
            monkeypatch.setenv(f"{prefix}{name}", CALL)
    parsed = parser_of("run cam").parse(["--data", "D", "--out", "O"])
    assert parsed.chosen.classifier.backbone == "resnet50"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classifier.training.epoch", "3"), "--classifier.training.epoch: found no such setting; .*Did you mean 'epochs'"),
        (("--classifier.training.epo", "3"), "--classifier.training.epo: found no such setting; .*Did you mean 'epochs'"),
        (("--classifier.training.epo=3",), "Did you mean 'epochs'"),
        (("--classifier.trainin.epochs", "3"), "Did you mean 'training'"),
        (("--classifier.training", "{epoch: 3}"), "--classifier.training.epoch: found no such setting"),
        (("--classifier", "{training: {epoch: 3}}"), "--classifier.training.epoch: found no such setting"),
        (("--config", "classifier: {training: {epoch: 3}}"), "--config: classifier.training.epoch: found no such setting"),
        (("--config", "clasifier: {}"), "--config: clasifier: found no such setting.*Did you mean 'classifier'"),
        (("--config", "classifier.training.epochs: 3"), "--config: classifier.training.epochs: found no such setting"),
        (("--clasifier.init", "none"), "found no such flag.*Did you mean '--classifier'"),
        (("--conf", "x"), "found no such flag.*Did you mean '--config'"),
        (("--print_conf",), "found no such flag.*Did you mean '--print_config'"),
        (("--print_config=skip_default",), "--print_config: found a value; expected the flag alone"),
        (("--classifier.init.x", "1"), "--classifier.init.x: found no such setting; expected none below it"),
        (("--classifier.training.lr",), "--classifier.training.lr: found no value"),
        (("--classifier.training.lr", "--skip-bad"), "--classifier.training.lr: found no value"),
        (("--classifier.training.lr", "-1"), "--classifier.training.lr: found -1.0; expected a number of 0 or more"),
        (("--tail.scores.thresholds", "[2]"), "--tail.scores.thresholds: found .*; expected numbers from 0 to 1"),
        (("--inference.scales", "[]"), "--inference.scales: found"),
        (("--classifier.augment.long_side", "[9, 3]"), "--classifier.augment.long_side: found .*the smaller number first"),
        (("--tail.refine.crf.gaussian_sxy", "-1"), "--tail.refine.crf.gaussian_sxy: found -1.0; expected a positive number"),
        (("--tail.refine.by", "scores", "--tail.refine.exponent", "null"), "tail.scores.background: found constant"),
        (("--skip-bad=perhaps",), "--skip-bad: found 'perhaps'"),
        (("--classifier" + ".a" * 5000, "1"), "--classifier: found 5001 names in one flag"),
        (("--data", "\ud800"), "--data: found .*; expected a path"),
        (("--device", "gpu"), "--device: found 'gpu'; expected one of auto, cpu"),
        (("word",), "'word': found a word too many"),
        (("-x",), "-x: found a word with a dash in front"),
        (("--config", ""), "--config: found no settings"),
        (("--config", "- 1\n- 2"), "--config: found a list of 2"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(BadInput, match=message):
        parser_of("run cam").parse(["--data", "D", "--out", "O", *words])


def test_a_flag_leads_no_deeper_than_a_file():
    assert "found 5001 names in one flag" in refused("run all", "--common" + ".a" * 5000, "1")


def test_files_in_their_order_and_flags_over_them(tmp_path):
    one, two, part = tmp_path / "1.yaml", tmp_path / "2.yaml", tmp_path / "part.yaml"
    one.write_text("data: X\nclassifier: {backbone: a, init: one, training: {lr: 1, seed: 1, epochs: 1}}\n")
    two.write_text("\ufeffclassifier: {init: two, training: {seed: 2, epochs: 2}}\ntag_rule: icam\n", encoding="utf-8")
    part.write_text("epochs: 3\n")
    words = ["--classifier.training.epochs", "4", "--config", str(one), f"--config={two}", "--out", "O", "--skip-bad"]
    parsed = parser_of("run cam").parse(words)
    assert (parsed.data, parsed.out, parsed.tag_rule, parsed.skip_bad) == (Path("X"), Path("O"), "icam", True)
    classifier = parsed.chosen.classifier
    assert (classifier.backbone, classifier.init, classifier.training.lr) == ("a", "two", 1.0)
    assert (classifier.training.seed, classifier.training.epochs, classifier.training.batch) == (2, 4, 16)
    parsed = parser_of("run cam").parse([*words, "--classifier.training", str(part), "--classifier.training.lr", "2"])
    assert (parsed.chosen.classifier.training.epochs, parsed.chosen.classifier.training.lr) == (3, 2.0)


@pytest.mark.parametrize("name", [name for name in _commands() if not name.startswith(("data", "demo"))])
def test_printed_settings_are_settings(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parser_of(name).parse(["--print_config"])
    (tmp_path / "printed.yaml").write_text(printed := capsys.readouterr().out)
    with pytest.raises(SystemExit):
        parser_of(name).parse(["--print_config", "--config", str(tmp_path / "printed.yaml")])
    assert capsys.readouterr().out == printed
    assert "data" not in yaml.safe_load(printed) or name == "compare"


@pytest.mark.parametrize("name", _commands())
def test_help_names_every_setting(name, capsys):
    parser = parser_of(name)
    with pytest.raises(SystemExit) as ended:
        parser.parse(["--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out

    def flags(keys, kind):
        for key, field in fields(kind).items():
            sections = parts_of(field.kind)
            for section in sections:
                yield from flags((*keys, key), section)
            if not sections:
                yield ".".join((*keys, key))

    for argument in parser.arguments.values():
        assert argument.flag in page
    if parser.top:
        assert all(f"--{flag} " in page for flag in flags((), parser.top))
    for section, kind in parser.sections.items():
        assert all(f"--{flag} " in page for flag in flags((section,), kind))


METHOD_OF = {
    "demo_cam": "cam",
    "demo_clip_es": "clip_es",
    "all_small": "all",
    "hfpl": "icam",
    "hfpl_coco": "icam",
    "seam": "icam",
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_published_settings_are_settings(path):
    method = METHOD_OF.get(path.stem) or path.stem.removesuffix("_coco").removesuffix("_camera_ready")
    parsed = parser_of(f"run {method}").parse(["--data", "D", "--out", "O", "--config", str(path)])
    assert parsed.common if method == "all" else parsed.chosen != type(parsed.chosen)()
