"""Settings from plain values: types, unknown keys, choices between dataclasses, names in errors; and nothing but plain values."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from wsss.arguments import DeclaredSettings, Parser, required, switch
from wsss.commands import _with_clip, commands
from wsss.configs import CONFIGS
from wsss.errors import BadInput, check_range
from wsss.run import maybe_file
from wsss.settings import Layer, build, fields, kinds, sections, to_plain


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
    assert build(Outer, to_plain(Outer())) == Outer()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frist": {}}, "^frist: no such setting. Did you mean first"),
        ({"first": {"step": 1}}, "^first.step: no such setting. Did you mean steps"),
        ({"crf": {"step": 1}}, "^crf.step: no such setting. Did you mean steps"),
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
        ({"__class__": "x"}, "__class__: no such setting"),
    ],
)  # fmt: skip
def test_what_does_not_fit(content, message):
    with pytest.raises(BadInput, match=message):
        build(Outer, content)


def test_later_values_are_put_over_earlier_ones_and_know_where_they_stand():
    file, flags = Layer(fields(Outer)), Layer(fields(Outer))
    file.add((), {"first": {"rate": 0.1, "steps": 1}, "crf": "psa"}, lambda keys: f"a.yaml: {'.'.join(keys)}")
    flags.add(("first",), {"steps": "x"}, lambda keys: f"--{'.'.join(keys)}")
    given = flags.over(file)
    assert given.content == {"first": {"rate": 0.1, "steps": "x"}, "crf": "psa"}
    with pytest.raises(BadInput, match=r"^--first.steps: found 'x'"):
        build(Outer, given.content, given.where)
    assert given.where(("first", "rate")) == "a.yaml: first.rate"
    assert given.where(("crf", "steps")) == "a.yaml: crf.steps"
    assert given.where(("name",)) == "name"


@dataclasses.dataclass(frozen=True)
class Plain:
    """Without learning."""

    kind: Literal["plain"] = "plain"
    threshold: float = 0.3
    """above it is object"""


@dataclasses.dataclass(frozen=True)
class Steps:
    beta: float = 10.0
    """how steep"""

    def __post_init__(self) -> None:
        check_range("walk.beta", self.beta, 0)


@dataclasses.dataclass(frozen=True)
class Learned:
    """With a network."""

    kind: Literal["learned"] = "learned"
    walk: Steps = Steps()
    """the walk"""
    threshold: float = 0.2
    """above it is object"""


@dataclasses.dataclass(frozen=True)
class Deeper:
    refiner: Plain | Learned = Learned(threshold=0.9)
    """nested"""


@dataclasses.dataclass(frozen=True)
class Run:
    refiner: Plain | Learned = Learned(walk=Steps(5.0))
    """masks"""
    deeper: Deeper = Deeper()
    """a part with another choice"""


def test_a_choice_between_dataclasses():
    usual = Learned(walk=Steps(5.0))
    assert build(Run, {}) == Run()
    # the usual one's values are the base where its kind is meant, and a member's own defaults elsewhere
    assert build(Run, {"refiner": {"threshold": 0.5}}).refiner == dataclasses.replace(usual, threshold=0.5)
    assert build(Run, {"refiner": {"kind": "learned", "threshold": 0.5}}).refiner.walk == Steps(5.0)
    assert build(Run, {"refiner": {"kind": "plain"}}).refiner == Plain()
    assert build(Run, {"refiner": "plain"}).refiner == Plain()
    assert build(Run, {"refiner": "learned"}).refiner == usual
    nested = build(Run, {"deeper": {"refiner": {"walk": {"beta": 1}}}}).deeper.refiner
    assert nested == Learned(walk=Steps(1.0), threshold=0.9)
    assert build(Run, to_plain(build(Run, {"refiner": "plain"}))) == Run(refiner=Plain())
    assert to_plain(Run(refiner=Plain()))["refiner"] == {"kind": "plain", "threshold": 0.3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"refiner": {"kind": "lerned"}}, "^refiner.kind: found 'lerned'; expected one of plain, learned. Did you mean 'learned'"),
        ({"refiner": {"kind": None}}, r"^refiner.kind: found nothing \(null\); expected one of plain, learned"),
        ({"refiner": {"kind": ["plain"]}}, "^refiner.kind: found a list of 1; expected one of"),
        ({"refiner": "plian"}, "^refiner: found 'plian'; expected plain or learned. Did you mean 'plain'"),
        ({"refiner": 3}, "^refiner: found 3; expected plain or learned"),
        ({"refiner": None}, "^refiner: found nothing"),
        ({"refiner": {"kind": "plain", "walk": {}}}, "^refiner.walk: found a setting of learned, while kind is plain"),
        ({"refiner": {"wakl": {}}}, "^refiner.wakl: no such setting. Did you mean walk"),
        ({"refiner": {"walk": {"beta": -1}}}, "^refiner.walk.beta: found -1.0; expected a number of 0 or more"),
        ({"deeper": {"refiner": {"kind": "plain", "walk": 1}}}, "^deeper.refiner.walk: found a setting of learned, while kind is plain"),
    ],
)  # fmt: skip
def test_choices_that_do_not_fit(content, message):
    with pytest.raises(BadInput, match=message):
        build(Run, content)


def layers(*contents):
    below = Layer(fields(Run))
    for content in contents:
        layer = Layer(fields(Run))
        layer.add((), content, ".".join)
        below = layer.over(below)
    return build(Run, below.content).refiner


def test_another_kind_replaces_what_was_said_of_the_one_before():
    learned = {"refiner": {"kind": "learned", "threshold": 0.5}}
    assert layers(learned, {"refiner": {"walk": {"beta": 1}}}) == Learned(walk=Steps(1.0), threshold=0.5)
    assert layers(learned, {"refiner": "learned"}).threshold == 0.5
    assert layers(learned, {"refiner": "plain"}) == Plain()
    assert layers(learned, {"refiner": {"kind": "plain", "threshold": 0.7}}) == Plain(threshold=0.7)
    assert layers(learned, {"refiner": "plain"}, {"refiner": "learned"}) == Learned(walk=Steps(5.0))
    # what is not said to be of another kind is the usual one's
    assert layers({"refiner": {"threshold": 0.6}}, {"refiner": {"kind": "learned"}}).threshold == 0.6
    # unless it cannot be: then it waits for its kind
    assert layers({"refiner": {"walk": {"beta": 1}}}, {"refiner": "learned"}).walk == Steps(1.0)
    assert layers({"refiner": {"threshold": 0.6}}, {"refiner": "learned"}, {"refiner": "plain"}) == Plain()
    with pytest.raises(BadInput, match="a setting of learned, while kind is plain"):
        layers({"refiner": "plain"}, {"refiner": {"walk": {"beta": 1}}})


@dataclasses.dataclass(frozen=True)
class Files:
    """Options."""

    place: Path = required(positional=True)
    """where"""
    out: Path = required()
    """where to"""
    skip_bad: bool = switch()
    """leave them out"""
    bands: str | tuple[int, ...] | None = None
    """which"""


def own(top=None, stage="", others=tuple) -> Parser[Files]:
    """A parser with the choice above, of mirrors as the command line has them."""
    from wsss import declared

    run = declared.read(__name__, "Run")
    below = {name: dataclasses.replace(field, default=getattr(run(), name)) for name, field in fields(run).items()}
    return Parser(
        "try",
        "Tries.",
        Files,
        DeclaredSettings({} if top else below, top, stage, others),
        ("refiner", "refiner.threshold"),
    )


def test_the_flags_of_one_command_line_are_one_layer(tmp_path):
    words = ["a", "--out", "b"]
    options, chosen = own().parse([*words, "--refiner.walk.beta", "8", "--skip-bad", "--refiner", "learned"])
    assert options == Files(Path("a"), Path("b"), skip_bad=True)
    assert chosen.build("refiner") == Learned(walk=Steps(8.0))
    assert own().parse([*words, "--refiner", "plain", "--refiner.threshold", "0.5"])[1].build("refiner") == Plain(
        threshold=0.5
    )
    # neither order may lose one of them
    for mixed in (
        ["--refiner", "plain", "--refiner.walk.beta", "8"],
        ["--refiner.walk.beta", "8", "--refiner", "plain"],
    ):
        with pytest.raises(BadInput, match=r"^--refiner.walk.*: found a setting of learned, while kind is plain"):
            own().parse([*words, *mixed])
    file = tmp_path / "a.yaml"
    file.write_text("refiner: {kind: learned, walk: {beta: 3}}\n")
    for given in (["--config", str(file)], ["--refiner.walk.beta", "3"]):
        assert own().parse([*words, *given])[1].build("refiner").walk == Steps(3.0)
    assert own().parse([*words, "--config", str(file), "--refiner", "plain"])[1].build("refiner") == Plain()
    part = tmp_path / "part.yaml"
    part.write_text("{kind: plain, threshold: 0.1}\n")
    assert own().parse([*words, "--refiner", str(part)])[1].build("refiner") == Plain(threshold=0.1)
    with pytest.raises(BadInput, match=r"^--refiner\.walk\.beta: found -1.0"):
        own().parse([*words, "--refiner.walk.beta", "-1"])[1].build("refiner")
    with pytest.raises(BadInput, match=r"^--refiner: found 'x'; expected plain or learned"):
        own().parse([*words, "--refiner", "x"])


def printed(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        own().parse(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_what_is_printed_holds_the_chosen_member_alone(capsys):
    assert yaml.safe_load(printed(capsys, "--print_config"))["refiner"]["walk"] == {"beta": 5.0}
    page = yaml.safe_load(printed(capsys, "--refiner", "plain", "--print_config"))
    assert page["refiner"] == {"kind": "plain", "threshold": 0.3}
    assert page["deeper"]["refiner"]["kind"] == "learned"


def test_the_long_help_page_is_of_the_chosen_members(capsys, tmp_path):
    short, usual = printed(capsys, "--help"), printed(capsys, "--help-all")
    assert "--refiner {plain,learned}" in short
    assert "--refiner.walk.beta" not in short
    assert "lists 6 more" in short
    assert "--refiner.walk.beta BETA" in usual
    assert "how steep (default: 5.0)" in usual
    plain = printed(capsys, "--refiner", "plain", "--help-all")
    assert "--refiner.walk.beta" not in plain
    assert "--refiner.threshold" in plain
    assert "--deeper.refiner.walk.beta" in plain
    # what stands after it does not count
    assert "--refiner.walk.beta" in printed(capsys, "--help-all", "--refiner", "plain")
    (tmp_path / "a.yaml").write_text("refiner: plain\n")
    assert "--refiner.walk.beta" not in printed(capsys, "--config", str(tmp_path / "a.yaml"), "--help-all")


def test_a_stage_takes_its_section_of_a_whole_run_s_file(tmp_path):
    from wsss import declared

    parser = own(declared.read(__name__, "Learned")(), "refiner", lambda: ("refiner", "deeper", "classifier"))
    file = tmp_path / "run.yaml"

    def parsed(text):
        file.write_text(text)
        return parser.parse(["a", "--out", "b", "--config", str(file)])

    options, chosen = parsed("refiner: {walk: {beta: 3}}\ndeeper: {anything: 1}\nbands: [3, 2]\n")
    assert (options.bands, chosen.build()) == ((3, 2), Learned(walk=Steps(3.0)))
    assert parsed("deeper: {}\n")[1].build() == Learned()
    assert parsed("walk: {beta: 3}\n")[1].build() == Learned(walk=Steps(3.0))
    for text, message in (
        ("refiner: {wakl: {}}\n", r"run.yaml: refiner.wakl: no such setting. Did you mean walk"),
        ("refiner: {}\nwakl: {}\n", "run.yaml: wakl: no such setting"),
        ("refiner: 3\n", "run.yaml: refiner: found 3; expected settings"),
    ):
        with pytest.raises(BadInput, match=message):
            parsed(text)


def parser_of(name: str) -> Parser[Any]:
    return commands()[name].parser(name)


def made(name: str, words: list[str]) -> dict[str, Any]:
    """The real settings that a command line asks for."""
    _, chosen = parser_of(name).parse(words)
    return {section: chosen.build(section) for section in chosen.mirrors}


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
    own = list(sections(kind))
    return own + [part for section in own for field in fields(section).values() for part in parts(field.kind)]


@pytest.mark.parametrize("name", commands())
def test_no_setting_holds_more_than_plain_values(name):
    """Nothing is typed as anything, as a class or as something to be called: so no value can be read as one."""
    parser = parser_of(name)
    top = fields(type(parser.settings.top)) if parser.settings.top is not None else {}
    # no two of one name
    assert len(parser.table) == len(parser.arguments) + len(top) + len(parser.settings.below)
    for key, field in parser.table.items():
        found = leaves(field.kind)
        if key in ("common", "runs"):
            # plain values, which the settings of the methods read as theirs
            assert set(found) == {dict, type(None)}
        else:
            assert set(found) <= {bool, int, float, str, Path, type(None), Literal}
        for part in parts(field.kind):
            assert all(inner.default is not dataclasses.MISSING for inner in fields(part).values())
            for inner in fields(part).values():
                assert len(sections(inner.kind)) <= 1 or len(kinds(inner.kind)) == len(sections(inner.kind))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that must not be imported, and a command line that must not import it."""
    (tmp_path / "canary.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "canary.X"
    assert "canary" not in sys.modules


def refused(name: str, *words: str) -> str:
    with pytest.raises(BadInput) as caught:
        made(name, ["--data", "D", "--out", "O", *words])
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
        ("run cam", ("--segmenter.training", CALL), "--segmenter.training.class_path: found the key"),
        ("run cam", ("--refiner.crf", CALL), "--refiner.crf.class_path: found the key"),
        ("run cam", ("--inference.scales", f"[{CALL}]"), "--inference.scales.0.class_path: found the key"),
        ("run cam", ("--config", f"classifier: {CALL}"), "--config: classifier.class_path: found the key"),
        ("run cam", ("--config", "a: !!python/name:canary.X"), "--config: a: found the YAML tag !!python/name:canary.X"),
        ("run cam", ("--refiner.threshold", "!!python/name:canary.X ''"), "found the YAML tag"),
        ("run cam", ("--refiner.crf", "canary.X"), "--refiner.crf: found 'canary.X'; expected one of irn"),
        ("run cam", ("--refiner.crf.help", "canary.X"), "--refiner.crf.help: no such setting"),
        ("run cam", ("--refiner.crf.help=canary.X",), "--refiner.crf.help: no such setting"),
        ("run cam", ("--classifier.help", "canary.X"), "--classifier.help: no such setting"),
        ("run cam", ("--classifier+=canary.X",), "--classifier+: no such flag. Did you mean --classifier"),
        ("run cam", ("--inference.scales+=canary.X",), "--inference.scales+: no such setting. Did you mean --inference.scales"),
        ("run all", ("--common", CALL), "--common.class_path: found the key"),
        ("run all", ("--common", f"{{training: {CALL}}}"), "--common.training.class_path: found the key"),
        ("run all", ("--common.training.class_path", "canary.X"), "--common.training.class_path: found the key"),
        ("run all", ("--runs", f"{{cam: {CALL}}}"), "--runs.cam.class_path: found the key"),
        ("run all", ("--clip", CALL), "--clip.class_path: found the key"),
        ("run all", ("--clip.class_path", "canary.X"), "--clip.class_path: found the key"),
        ("train clip", ("--training", CALL), "--training.class_path: found the key"),
        ("refine", ("--refiner", CALL), "--refiner.class_path: found the key"),
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
    given = ["--data", "D", "--out", "O", "--preset", "paper"]
    assert made("run cam", given)["classifier"].backbone == "resnet50"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classifier.training.epoch", "3"), "^--classifier.training.epoch: no such setting. Did you mean --classifier.training.epochs?"),
        (("--classifier.training.epo=3",), "Did you mean --classifier.training.epochs"),
        (("--classifier.trainin.epochs", "3"), "^--classifier.trainin: no such setting. Did you mean --classifier.training?"),
        (("--classifier.training", "{epoch: 3}"), "^--classifier.training.epoch: no such setting"),
        (("--classifier", "{training: {epoch: 3}}"), "^--classifier.training.epoch: no such setting"),
        (("--config", "classifier: {training: {epoch: 3}}"), "^--config: classifier.training.epoch: no such setting. Did you mean epochs?"),
        (("--config", "clasifier: {}"), "^--config: clasifier: no such setting. Did you mean classifier?"),
        (("--config", "classifier.training.epochs: 3"), "--config: classifier.training.epochs: no such setting"),
        (("--clasifier.init", "none"), "^--clasifier.init: no such flag. Did you mean --classifier.init?"),
        (("--dta", "none"), "^--dta: no such flag. Did you mean --data. `wsss run cam --help` lists them.$"),
        (("--epochs", "3"), "^--epochs: no such flag. Did you mean --classifier.training.epochs?"),
        (("--qqqqqqq", "3"), "^--qqqqqqq: no such flag. `wsss run cam --help` lists them.$"),
        (("--classifier.qqqqqqq", "3"), "^--classifier.qqqqqqq: no such setting. `--help-all` lists all settings.$"),
        (("--conf", "x"), "no such flag. Did you mean --config"),
        (("--print_conf",), "no such flag. Did you mean --print_config"),
        (("--refiner", "irnt"), "^--refiner: found 'irnt'; expected crf or irnet or affinitynet or regions. Did you mean 'irnet'"),
        (("--refiner.kind", "irnt"), "^--refiner.kind: found 'irnt'; expected .* Did you mean 'irnet'"),
        (("--refiner.walk.beta", "3"), "^--refiner.walk.beta: found a setting of irnet and affinitynet, while kind is crf"),
        (("--segmenter.kind", "emanet", "--segmenter.head_lr", "[1, 1]"), "^--segmenter.head_lr: found a setting of deeplab, while kind is emanet"),
        (("--print_config=skip_default",), "--print_config: found a value; expected no value"),
        (("--classifier.init.x", "1"), "--classifier.init.x: no such setting. It has no settings below it"),
        (("--classifier.training.lr",), "--classifier.training.lr: found no value"),
        (("--classifier.training.lr", "--skip-bad"), "--classifier.training.lr: found no value"),
        (("--classifier.training.lr", "-1"), "--classifier.training.lr: found -1.0; expected a number of 0 or more"),
        (("--scores.thresholds", "[2]"), "--scores.thresholds: found .*; expected numbers from 0 to 1"),
        (("--inference.scales", "[]"), "--inference.scales: found"),
        (("--classifier.augment.long_side", "[9, 3]"), "--classifier.augment.long_side: found .*the smaller number first"),
        (("--refiner.crf.gaussian_sxy", "-1"), "--refiner.crf.gaussian_sxy: found -1.0; expected a positive number"),
        (("--skip-bad=perhaps",), "--skip-bad: found 'perhaps'"),
        (("--classifier" + ".a" * 5000, "1"), "--classifier: found 5001 names in one flag"),
        (("--data", "\ud800"), "--data: found .*; expected a path"),
        (("--device", "gpu"), "--device: found 'gpu'; expected one of auto, cuda, mps, cpu"),
        (("word",), "'word': found an extra argument"),
        (("-x",), "^-x: no such flag"),
        (("--config", ""), "--config: found no settings"),
        (("--config", "- 1\n- 2"), "--config: found a list of 2"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(BadInput, match=message):
        made("run cam", ["--data", "D", "--out", "O", *words])


@pytest.mark.parametrize("text", ["0.5,1", "[0.5, 1]", "0.5, 1.0", "[0.5,\n1]"])
def test_a_list_needs_no_brackets_in_a_flag(text):
    for name, flag, section in (("predict", "--scales", ""), ("run cam", "--test.scales", "test")):
        options = ["--weights", "w", "--pictures", "p"] if name == "predict" else ["--data", "d"]
        _, chosen = parser_of(name).parse([*options, "--out", "o", flag, text])
        assert chosen.build(section).scales == (0.5, 1.0)


def test_one_number_is_a_list_of_one_and_null_none():
    words = ["--weights", "w", "--pictures", "p", "--out", "o", "--scales"]
    for text, expected in (("2", (2.0,)), ("null", None)):
        assert parser_of("predict").parse([*words, text])[1].build().scales == expected
    with pytest.raises(BadInput, match=r"--scales\.1: found 'much'; expected a number"):
        parser_of("predict").parse([*words, "1,much"])


def test_one_clip_serves_the_tagger_and_the_method():
    words = ["--data", "d", "--out", "o", "--tagger.clip", "other.pt"]

    def clips(name, *more, by_tagclip=True):
        _, chosen = parser_of(name).parse([*words, *more])
        changed = _with_clip(name.removeprefix("run "), "mine.pt", chosen, by_tagclip=by_tagclip)
        return {section: one.clip for section, one in changed.mirrors.items() if hasattr(one, "clip")}

    assert clips("run clip_es") == {"inference": "mine.pt", "tagger": "other.pt"}
    words = words[:4]
    assert clips("run clip_es") == {"inference": "mine.pt", "tagger": "mine.pt"}
    assert clips("run clims", "--classifier.clip", "x.pt") == {"classifier": "x.pt", "tagger": "mine.pt"}
    assert clips("run cam") == {"tagger": "mine.pt"}
    with pytest.raises(BadInput, match=r"--clip: found 'mine\.pt'; expected a method with a CLIP, unlike cam"):
        clips("run cam", by_tagclip=False)


def test_a_flag_leads_no_deeper_than_a_file():
    assert "found 5001 names in one flag" in refused("run all", "--common" + ".a" * 5000, "1")


def test_files_in_their_order_and_flags_over_them(tmp_path):
    one, two, part = tmp_path / "1.yaml", tmp_path / "2.yaml", tmp_path / "part.yaml"
    one.write_text("data: X\nclassifier: {backbone: a, init: one, training: {lr: 1, seed: 1, epochs: 1}}\n")
    two.write_text("\ufeffclassifier: {init: two, training: {seed: 2, epochs: 2}}\ntag_rule: icam\n", encoding="utf-8")
    part.write_text("epochs: 3\n")
    words = ["--classifier.training.epochs", "4", "--config", str(one), f"--config={two}", "--out", "O", "--skip-bad"]
    options, chosen = parser_of("run cam").parse(words)
    assert (options.data, options.out, options.tag_rule, options.skip_bad) == (Path("X"), Path("O"), "icam", True)
    classifier = chosen.build("classifier")
    assert (classifier.backbone, classifier.init, classifier.training.lr) == ("a", "two", 1.0)
    assert (classifier.training.seed, classifier.training.epochs, classifier.training.batch) == (2, 4, 16)
    training = made("run cam", [*words, "--classifier.training", str(part), "--classifier.training.lr", "2"])[
        "classifier"
    ].training
    assert (training.epochs, training.lr) == (3, 2.0)


@pytest.mark.parametrize("name", [name for name, one in commands().items() if one.has_config])
def test_printed_settings_are_settings(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parser_of(name).parse(["--print_config"])
    (tmp_path / "printed.yaml").write_text(printed := capsys.readouterr().out)
    with pytest.raises(SystemExit):
        parser_of(name).parse(["--print_config", "--config", str(tmp_path / "printed.yaml")])
    assert capsys.readouterr().out == printed
    assert "data" not in yaml.safe_load(printed) or name == "compare"


METHOD_OF = {
    "demo_cam": "cam",
    "demo_clip_es": "clip_es",
    "demo_recam": "recam",
    "all_small": "all",
    "hfpl": "icam",
    "hfpl_coco": "icam",
    "seam": "icam",
    "demo_weclip": "weclip",
    "weclip_plus_coco": "weclip",
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_published_settings_are_settings(path):
    method = METHOD_OF.get(path.stem) or path.stem.removesuffix("_coco").removesuffix("_camera_ready")
    options, chosen = parser_of(f"run {method}").parse(["--data", "D", "--out", "O", "--config", str(path)])
    if method == "all":
        assert options.common
        return
    usual = parser_of(f"run {method}").parse(["--data", "D", "--out", "O"])[1]
    assert dict(chosen.mirrors) != dict(usual.mirrors)
    assert all(chosen.build(section) is not None for section in chosen.mirrors)
