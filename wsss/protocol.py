"""All methods under one protocol: what they share in settings and stages, a folder for each, one failure at a time."""

import dataclasses
import json
import logging
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wsss import launch, peers
from wsss.data.documents import Keys, dotted, dump
from wsss.data.names import name_problem
from wsss.errors import BadInput, NoSuchName, nearest, suggestion
from wsss.registry import SHARED
from wsss.run import sharing_stages
from wsss.settings import Field, Given, described, fields, section_of, values
from wsss.stages.check import DATA
from wsss.stages.runs import FAILED, RUNS
from wsss.storage import read_json, write_json, write_text

# The CLIP that all methods use, where a run trains one; no run has its name
CLIP = "clip"
SETTINGS = "settings.yaml"

log = logging.getLogger("wsss")


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        name: of its folder.
        method: the module in `wsss.methods`.
        content: settings that differ from the method's own, as `wsss run METHOD --config` takes them.
        where: the name under which a setting was given, from the keys that lead to it, for errors.
    """

    name: str
    method: str
    content: Mapping[str, Any]
    where: Callable[[Keys], str] = dataclasses.field(default=dotted, compare=False)

    def mentions(self, value: Any) -> bool:
        """Whether a setting has this value."""
        return _holds(self.content, value)

    def settings(self, methods: Mapping[str, Mapping[str, Field]]) -> dict[str, Any]:
        """All its settings by the names of the sections, typed as in the tables of all methods.

        Raises:
            BadInput: a setting that the method does not have, or a value of the wrong type.
        """
        table = methods[self.method]
        usual = {name: field.default for name, field in table.items()}
        return usual | values(table, None, self.content, (), self.where)


def _holds(content: Any, value: Any) -> bool:
    return any(_holds(inner, value) for inner in content.values()) if isinstance(content, Mapping) else content == value


def with_clip(common: Mapping[str, Any], out: Path, by_tagclip: bool) -> dict[str, Any]:
    """Common settings, with the CLIP that a run trains on its own pictures and tags for all methods.

    Args:
        common: without it.
        out: folder of the runs.
        by_tagclip: whether TagCLIP gives the tags.

    Raises:
        BadInput: another CLIP is asked for as well, or tags of one.
    """
    if CLIP in common or by_tagclip:
        other = f"common.{CLIP}" if CLIP in common else "--tags tagclip"
        raise BadInput(CLIP, f"it together with {other}", "one of them", "Remove one.")
    return {**common, CLIP: str(out / CLIP)}


def plan(
    methods: Mapping[str, Mapping[str, Field]],
    common: Mapping[str, Any],
    runs: Mapping[str, Any],
    chosen: Sequence[str] | None = None,
    where: Callable[[Keys], str] = dotted,
) -> list[Planned]:
    """What is to be run, with which settings.

    There is a run for each section of `runs`, and one for each method that no section is about. A section may name its method
    under the key `method`; otherwise its name is the method's.

    A setting of `common` goes to the section of that name (`refiner`, `inference` ...), or else into each section of the method's
    own that has a setting of that name: `backbone` into every classifier, `scales` into every inference. So a method without such
    a setting is left alone. Initial weights (`init`) go where there is a backbone. Sections of `runs` come on top.

    Args:
        methods: the sections of the settings of each method.
        common: for all methods.
        runs: for single ones: keys and values, or None for a run without settings of its own.
        chosen: names of runs, or of methods, whose runs are all taken; None for all.
        where: the name of a setting for errors, from the keys that lead to it: `common`, `training`.

    Raises:
        BadInput: an unknown method, run or common setting, or a name that no folder of a run can have.
    """
    method_of: dict[str, str] = {}
    for name, section in runs.items():
        place = where(("runs", name))
        if section is not None and not isinstance(section, Mapping):
            raise BadInput(place, described(section), "settings of a run, by their names", "Correct it.")
        method = str((section or {}).get("method", name))
        if method not in methods:
            do = f"{suggestion(method, list(methods))}Name it under the key `method` of the section."
            raise BadInput(place, f"no method {method!r}", f"one of {', '.join(methods)}", do)
        if name == CLIP or not _names_folder(name):
            raise BadInput(place, f"the name {name!r}", f"a folder's name other than {CLIP!r}", "Rename it.")
        method_of[name] = method
    method_of |= {method: method for method in methods if method not in method_of.values()}
    unknown = sorted(set(chosen or ()) - {*method_of, *method_of.values()})
    if unknown:
        do = f"{suggestion(unknown[0], list(method_of))}Correct it."
        raise BadInput("--methods", repr(unknown[0]), f"some of {', '.join(method_of)}", do)
    _check_common(common, methods.values(), where)
    planned = []
    for name, method in method_of.items():
        if chosen is not None and name not in chosen and method not in chosen:
            continue
        table = methods[method]
        given, own = Given(table), Given(table)
        for key, value in common.items():
            for keys in _places(key, table):
                given.add(keys, value, partial(_renamed, where, keys, ("common", key)))
        content = {key: value for key, value in (runs.get(name) or {}).items() if key != "method"}
        own.add((), content, partial(_renamed, where, (), ("runs", name)))
        both = own.over(given)
        planned.append(Planned(name, method, both.content, both.where))
    return planned


def _check_common(
    common: Mapping[str, Any], tables: Collection[Mapping[str, Field]], where: Callable[[Keys], str]
) -> None:
    """Raise BadInput for a common setting that no method has."""
    for key in common:
        if not any(_places(key, table) for table in tables):
            known = {name for table in tables for name in (*table, *(n for part in _own(table).values() for n in part))}
            near = nearest(key, sorted(known))
            do = f"Did you mean {near}?" if near else "`wsss run METHOD --help-all` lists those of a method."
            raise NoSuchName(where(("common", key)), "setting of any method", do)


def _renamed(where: Callable[[Keys], str], place: Keys, origin: Keys, keys: Keys) -> str:
    """The name of a setting of a run, that was given elsewhere: what is at `place` there comes from `origin`."""
    return where((*origin, *keys[len(place) :]))


def _names_folder(name: str) -> bool:
    return name.isprintable() and "/" not in name and not name.startswith(".") and name_problem(name) is None


def _own(table: Mapping[str, Field]) -> dict[str, Mapping[str, Field]]:
    """The settings in the sections of a method's own."""
    return {
        name: fields(section)
        for name, field in table.items()
        if name not in SHARED and (section := section_of(field.kind)) is not None
    }


def _places(key: str, table: Mapping[str, Field]) -> list[Keys]:
    """Where in a method's settings a common one goes."""
    if key in table:
        return [(key,)]
    # a network that goes on from another one's weights has an `init` too
    return [(name, key) for name, part in _own(table).items() if key in part and (key != "init" or "backbone" in part)]


def run_all(
    out: Path,
    planned: Sequence[Planned],
    make: Callable[[Planned, Path], None],
) -> list[str]:
    """Make every run in a folder of its own in `out`; those that are finished are skipped, those half done go on.

    A stage that an earlier run has made from the same settings and inputs is taken from there. A run that fails leaves the
    reason in `failed.json`, and the others are made all the same. Only where there are several processes, which may not all
    have noticed, the failure ends the command; started again, it leaves failed runs for the end.

    Args:
        out: the folder, with the `data.json` that all share.
        planned: the runs.
        make: makes one run in the folder that it is given.

    Returns:
        Names of the runs that failed.
    """
    failed = []
    order = list(planned)
    if launch.processes() > 1:
        before = launch.decided_by_first(lambda: [one.name for one in planned if (out / one.name / FAILED).exists()])
        order.sort(key=lambda one: one.name in before)
    for number, one in enumerate(order, start=1):
        run = out / one.name
        log.info("[%d of %d] %s", number, len(order), one.name)
        launch.decided_by_first(partial(_begin, run, out, one))
        try:
            with sharing_stages(out):
                make(one, run)
        except Exception as error:  # whatever ends one run must not end the others
            if peers.caused_by_another(error):
                raise
            _report_failure(run, one.name, error)
            if launch.processes() > 1:
                raise
            failed.append(one.name)
    return failed


def _begin(run: Path, out: Path, one: Planned) -> None:
    if (run / FAILED).exists():
        (run / FAILED).unlink()
    # a copy, in which nothing is named twice: YAML would write such as anchors
    content = json.loads(json.dumps(one.content))
    write_text(run / SETTINGS, dump(content))
    write_json(run / DATA, read_json(out / DATA, "notes on the data set"))


def _report_failure(run: Path, name: str, error: Exception) -> None:
    text = str(error) or type(error).__name__
    if isinstance(error, BadInput):
        log.error("%s failed: %s", name, text)
        write_json(run / FAILED, {"error": text})
        return
    text = f"{type(error).__name__}: {error}"
    log.error("%s failed: %s", name, text, exc_info=error)
    write_json(run / FAILED, {"error": text, "traceback": traceback.format_exception(error)})


def remember(out: Path, planned: Sequence[Planned]) -> None:
    """Write which runs are in the folder `out`, earlier ones included, for a comparison of all."""
    path = out / RUNS
    known = read_json(path, "the names of runs") if path.exists() else {}
    write_json(path, known | {one.name: one.method for one in planned})
