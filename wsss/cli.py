"""The command line: find the command, parse its arguments, run it."""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from wsss import __version__, memory, peers, registry
from wsss.commands import Command, command, commands
from wsss.methods import METHODS
from wsss.options import OutOptions
from wsss.terminal import Formatter, show

HELP = """\
usage: wsss COMMAND [--help] ...

Weakly supervised semantic segmentation: from image-level tags to masks and a trained segmenter.

{commands}

Methods:
{methods}

`wsss COMMAND --help` lists the common options of a command, --help-all lists all. Settings can also be given in a YAML file
(--config FILE); --print_config prints one. Several processes: torchrun --nproc-per-node N -m wsss COMMAND ...
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status: 0, 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"wsss {__version__}")
        return 0
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("wsss").setLevel(logging.INFO)
    return peers.guarded(lambda: _run(words))


def _run(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        show(_help(), end="")
        return
    if words[1:] in (["-h"], ["--help"]):
        of_verb = {name: one for name, one in commands().items() if name.startswith(f"{words[0]} ")}
        if of_verb:
            show(_overview(of_verb))
            return
    name, chosen = command(words)
    options, settings = chosen.parser(name).parse(words[len(name.split()) :])
    # torch then takes large tensors in large pages: those of a large picture would take hundreds of thousands of small ones
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(options, OutOptions):
        memory.choose(options.memory)
    if isinstance(options, OutOptions) and options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif isinstance(options, OutOptions) and (options.device == "cuda" or options.device == "mps"):
        from wsss import launch

        launch.require(options.device)
    several = any(int(os.environ.get(variable, "1")) > 1 for variable in ("WORLD_SIZE", "SLURM_NTASKS"))
    if several:
        from wsss import launch

        launch.join()
    # a run says so in its plan
    if settings.preset is not None and peers.rank() == 0 and not name.startswith("run "):
        show(f"preset {settings.preset} ({settings.why}); --preset chooses another", stream=sys.stderr)
    with _locked(options):
        if chosen.only_stages and not several:
            from wsss.finished import run_unless_finished

            run_unless_finished(name, options, settings.mirrors, lambda: chosen.run(options, settings))
        else:
            chosen.run(options, settings)


def _help() -> str:
    single = {name: one.help for name, one in commands().items() if name.partition(" ")[2] not in METHODS}
    verbs = {f"{verb} METHOD": about for verb, about in registry.VERBS.items()}
    methods = {name: registry.declared_method(name).paper for name in METHODS}
    for name in METHODS:
        if (has := registry.verbs(name)) != list(registry.VERBS):
            methods[name] += f" ({' and '.join(has)} only)"
    return HELP.format(commands=_listed(verbs | single), methods=_listed(methods))


def _overview(listed: Mapping[str, Command[Any]]) -> str:
    return _listed({name: one.help for name, one in listed.items()})


def _listed(lines: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<17} {about}" for name, about in lines.items())


def _locked(options: object) -> contextlib.AbstractContextManager[None]:
    """Lock the output folder while a command runs; commands that only write a page need no lock."""
    if not isinstance(options, OutOptions):
        return contextlib.nullcontext()
    from wsss import lock

    return lock.locked(options.out)
