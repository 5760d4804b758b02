"""Random documents, flags and edits of good ones against every command: settings or one error, and nothing imported."""

import os
import random
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wsss import registry
from wsss.arguments import Parser
from wsss.commands import commands
from wsss.configs import CONFIGS
from wsss.data.documents import dump
from wsss.errors import BadInput
from wsss.methods import METHODS, method
from wsss.protocol import plan
from wsss.settings import fields, from_mirror, sections, to_plain

pytestmark = pytest.mark.fuzz

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
RUNS = [name for name in METHODS if "run" in registry.verbs(name)]
HOSTILE = (
    "class_path", "init_args", "dict_kwargs", "canary.X", "class_path: canary.X", "{class_path: canary.X, init_args: {a: 1}}",
    "!!python/name:canary.X ''", "!!python/module:canary ''", "!!python/object/apply:os.mkdir [canary-folder]", "!canary x", "!!set {a}",
    "&a [*a]", "&a {b: *a}", "*a", "<<: *a", "&a", "null", "~", ".nan", "-.inf", "1e999", "9" * 5000, "9" * 90, "-1", "0", "1.5", "true", "no",
    "[", "]", "{", "}", "[" * 60, "{a: " * 60, ": ", "- ", "\t", "\n", "---", "...", "%YAML 9.1\n---\n", "%TAG ! tag:yaml.org,2002:python/\n---\n",
    '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', "\ud800", "\udcff", "\0", "\x1b[2J", "\ufeff", "é", "\u2028", "''", "#", "|", ">", "? ", "@", "`",
    "--config", "--help.", "--help-all",
    "help", "__class__", "kind", "method", "/", "..", "a" * 300, "[1, 2]", "[[1]]", "{a: 1}", "2020-01-01", "1:30", "010",
)  # fmt: skip


@cache
def parser_of(name: str) -> Parser[Any]:
    return commands()[name].parser(name)


def known(parser: Parser[Any], rng: random.Random) -> tuple[str, ...]:
    """Keys of a random setting."""
    keys = [rng.choice(list(parser.table))]
    kind = parser.table[keys[0]].kind
    while (known := sections(kind)) and rng.random() < 0.9:
        section = rng.choice(known)
        keys.append(rng.choice(list(fields(section))))
        kind = fields(section)[keys[-1]].kind
    return tuple(keys)


def default(parser: Parser[Any], keys: tuple[str, ...]) -> object:
    """The plain value that a setting has where nothing is given."""
    found = parser.table[keys[0]].default
    for key in keys[1:]:
        found = getattr(found, key, None)
    return to_plain(found)


def edited(text: str, rng: random.Random) -> str:
    """A text with a few random pieces put in, taken out, or put twice."""
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice((0, 0, 1, 3, 20)))
        text = (
            text[:at] + rng.choice((rng.choice(HOSTILE), chr(rng.randrange(1, 0x300)), text[at:to] * 2, "")) + text[to:]
        )
    return text


def value(rng: random.Random, depth: int = 0) -> object:
    """A random plain value."""
    kinds = rng.random()
    if depth < 5 and kinds < 0.2:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 5 and kinds < 0.5:
        words = (
            "classifier",
            "training",
            "epochs",
            "refiner",
            "segmenter",
            "kind",
            "crf",
            "irnet",
            "method",
            "scales",
            "backbone",
            *HOSTILE[:3],
        )
        return {rng.choice(words): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(
        (None, True, 0, -1, 3, 0.5, 1e-4, 10**30, float("inf"), "", "none", "auto", "irn", rng.choice(HOSTILE))
    )


def flag(parser: Parser[Any], rng: random.Random) -> list[str]:
    keys = known(parser, rng)
    name = f"--{'.'.join(keys)}"
    if rng.random() < 0.2:
        name = edited(name, rng)
    given = default(parser, keys) if rng.random() < 0.5 else value(rng)
    text = given if isinstance(given, str) else dump(given).removesuffix("...\n").strip()
    if rng.random() < 0.3:
        text = edited(rng.choice((text, rng.choice(HOSTILE))), rng)
    return [f"{name}={text}"] if rng.random() < 0.5 else [name, text]


def document(parser: Parser[Any], rng: random.Random, good: list[str]) -> str:
    if rng.random() < 0.2:
        return edited(rng.choice(good), rng)
    keys = known(parser, rng)
    content = default(parser, keys) if rng.random() < 0.5 else value(rng)
    for key in reversed(keys):
        content = {key: content}
    return edited(dump(content), rng) if rng.random() < 0.6 else dump(content)


def outcome(parser: Parser[Any], words: list[str]) -> str:
    """What comes of a command line: `settings`, a `page` printed, or `refused` by one error."""
    try:
        options, chosen = parser.parse(words)
        for section in chosen.mirrors:
            chosen.build(section)
        if parser.command == "run all":
            tables = {name: registry.sections(registry.declared_method(name)) for name in RUNS}
            for one in plan(tables, options.common or {}, options.runs or {}, None, chosen.where):
                for section, settings in one.settings(tables).items():
                    from_mirror(settings, (section,), one.where)
    except BadInput as error:
        return "refused" if error.where and error.found and error.expected and error.do else f"half an error: {error}"
    except SystemExit as ended:
        return f"page {ended.code}"
    return "settings"


def test_settings(tmp_path, monkeypatch, capsys):
    (tmp_path / "canary.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    good = [path.read_text() for path in CONFIGS.glob("*.yaml")]
    for name in RUNS:
        below = parser_of(f"run {name}").settings.below
        good.append(dump({section: to_plain(field.default) for section, field in below.items()}))
    outcomes: Counter[str] = Counter()
    for name in METHODS:
        method(name)  # takes longer than the rest
    names, seed, until = list(commands()), int(os.environ.get("FUZZ_SEED", "0")), time.monotonic() + SECONDS
    while time.monotonic() < until:
        seed += 1
        rng = random.Random(seed)
        parser = parser_of(rng.choice(names))
        words = ["--data", "D", "--out", "O"] if rng.random() < 0.8 else []
        for _ in range(rng.randrange(3)):
            words += flag(parser, rng)
        if rng.random() < 0.6:
            config.write_text(document(parser, rng, good), encoding="utf-8", errors="surrogatepass")
            words += ["--config", str(config)]
        if rng.random() < 0.1:
            words.insert(rng.randrange(len(words) + 1), rng.choice((*HOSTILE, "--print_config")))
        try:
            outcomes[found := outcome(parser, words)] += 1
            assert found in ("settings", "refused", "page 0")
            assert found != "page 0" or {"-h", "--help", "--help-all", "--print_config"} & set(words)
            assert "canary" not in sys.modules
            assert not Path("canary-folder").exists()
        except BaseException as error:
            error.add_note(
                f"seed {seed}: wsss {parser.command} {words}, with {config.read_bytes() if config.exists() else None}"
            )
            raise
        capsys.readouterr()
    with capsys.disabled():
        print(dict(outcomes))
    # neither everything nor nothing is refused
    assert min(outcomes["settings"], outcomes["refused"]) > sum(outcomes.values()) / 50
