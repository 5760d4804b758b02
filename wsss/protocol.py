"""`wsss run all`: all methods under one protocol, with common settings, shared stages, and a folder for each run."""

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
from wsss.registry import method_sections, places
from wsss.run import sharing_stages
from wsss.settings import Field, Layer, describe, values
from wsss.stages.check import DATA
from wsss.stages.runs import FAILED, RUNS
from wsss.storage import read_json, write_json, write_text

# Folder of the CLIP that is trained for all methods; no run may have this name
CLIP = "clip"
SETTINGS = "settings.yaml"

log = logging.getLogger("wsss")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of `wsss run all`.

    Attributes:
        name: name of its folder.
        method: name of the module in `wsss.methods`.
        content: settings that differ from the method's defaults, as in `wsss run METHOD --config`.
        where: maps the keys of a setting to the name under which it was given, for errors.
    """

    name: str
    method: str
    content: Mapping[str, Any]
    where: Callable[[Keys], str] = dataclasses.field(default=dotted, compare=False)

    def mentions(self, value: Any) -> bool:
        """Whether any of its settings has this value."""
        return _contains(self.content, value)

    def settings(self, methods: Mapping[str, Mapping[str, Field]]) -> dict[str, Any]:
        """All its settings by section, with the types in the tables of the methods.

        Raises:
            BadInput: an unknown setting, or a value of the wrong type.
        """
        table = methods[self.method]
        defaults = {name: field.default for name, field in table.items()}
        return defaults | values(table, None, self.content, (), self.where)


def _contains(content: Any, value: Any) -> bool:
    return (
        any(_contains(inner, value) for inner in content.values()) if isinstance(content, Mapping) else content == value
    )


def with_clip(common: Mapping[str, Any], out: Path, by_tagclip: bool) -> dict[str, Any]:
    """The common settings, with the CLIP that is trained on the pictures and tags of the dataset for all methods.

    Args:
        common: the common settings without a CLIP.
        out: output folder, with the folders of the runs.
        by_tagclip: whether TagCLIP predicts the tags.

    Raises:
        BadInput: another CLIP is set as well, or TagCLIP predicts the tags.
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
    preset: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> list[PlannedRun]:
    """The runs with their settings.

    There is a run for each section of `runs`, and one for each method without a section. A section may name its method
    under the key `method`; otherwise its name is the name of the method.

    A setting in `common` applies to the section of that name (`refiner`, `inference` ...), or else to each section of the method
    that has a setting of that name: `backbone` to every classifier, `scales` to every inference. A method without such a setting
    ignores it. Initial weights (`init`) apply only to sections with a backbone. Sections of `runs` override common settings.

    Args:
        methods: the sections of the settings of each method.
        common: settings for all methods.
        runs: settings of single runs by name; None for a run with common settings only.
        chosen: names of runs, or of methods to select all of their runs; None for all.
        where: maps the keys of a setting, such as `common`, `training`, to its name for errors.
        preset: the settings of a preset for a method and the settings given for it, which override the preset.

    Raises:
        BadInput: an unknown method, run or common setting, or a name that cannot be the folder of a run.
    """
    method_of: dict[str, str] = {}
    for name, section in runs.items():
        place = where(("runs", name))
        if section is not None and not isinstance(section, Mapping):
            raise BadInput(place, describe(section), "settings of a run, by their names", "Correct it.")
        method = str((section or {}).get("method", name))
        if method not in methods:
            do = f"{suggestion(method, list(methods))}Name it under the key `method` of the section."
            raise BadInput(place, f"no method {method!r}", f"one of {', '.join(methods)}", do)
        if name == CLIP or not _is_folder_name(name):
            raise BadInput(place, f"the name {name!r}", f"a folder name other than {CLIP!r}", "Rename it.")
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
        shared, single = Layer(table), Layer(table)
        for key, value in common.items():
            for keys in places(key, table):
                shared.add(keys, value, partial(_place_of, where, keys, ("common", key)))
        content = {key: value for key, value in (runs.get(name) or {}).items() if key != "method"}
        single.add((), content, partial(_place_of, where, (), ("runs", name)))
        both = single.over(shared)
        if preset is not None:
            below = Layer(table)
            below.add((), preset(method, both.content), dotted)
            both = both.over(below)
        planned.append(PlannedRun(name, method, both.content, both.where))
    return planned


def _check_common(
    common: Mapping[str, Any], tables: Collection[Mapping[str, Field]], where: Callable[[Keys], str]
) -> None:
    """Raise BadInput for a common setting that no method has."""
    for key in common:
        if not any(places(key, table) for table in tables):
            known = {
                name
                for table in tables
                for name in (*table, *(n for part in method_sections(table).values() for n in part))
            }
            near = nearest(key, sorted(known))
            do = f"Did you mean {near}?" if near else "`wsss run METHOD --help-all` lists those of a method."
            raise NoSuchName(where(("common", key)), "setting of any method", do)


def _place_of(where: Callable[[Keys], str], place: Keys, origin: Keys, keys: Keys) -> str:
    """The name, for errors, of a run's setting that was given elsewhere: the settings at `place` come from `origin`."""
    return where((*origin, *keys[len(place) :]))


def _is_folder_name(name: str) -> bool:
    return name.isprintable() and "/" not in name and not name.startswith(".") and name_problem(name) is None


def run_all(
    out: Path,
    planned: Sequence[PlannedRun],
    make: Callable[[PlannedRun, Path], None],
) -> list[str]:
    """Make every run in its own folder below `out`; finished runs are skipped, unfinished ones continue.

    A stage that an earlier run has made from the same settings and inputs is linked from there. The reason of a failure is written
    to `failed.json`, and the next run starts. With several processes, a failure ends the command instead, since not all processes
    may have noticed it; the next command makes the failed runs last.

    Args:
        out: the output folder, with the `data.json` that all runs share.
        planned: the runs.
        make: makes one run in the given folder.

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
        launch.decided_by_first(partial(_start_run, run, out, one))
        try:
            with sharing_stages(out):
                make(one, run)
        except Exception as error:  # no error of one run may end the others
            if peers.caused_by_another(error):
                raise
            _report_failure(run, one.name, error)
            if launch.processes() > 1:
                raise
            failed.append(one.name)
    return failed


def _start_run(run: Path, out: Path, one: PlannedRun) -> None:
    if (run / FAILED).exists():
        (run / FAILED).unlink()
    # a copy without shared objects, which YAML would write as anchors
    content = json.loads(json.dumps(one.content))
    write_text(run / SETTINGS, dump(content))
    write_json(run / DATA, read_json(out / DATA, "notes on the dataset"))


def _report_failure(run: Path, name: str, error: Exception) -> None:
    text = str(error) or type(error).__name__
    if isinstance(error, BadInput):
        log.error("%s failed: %s", name, text)
        write_json(run / FAILED, {"error": text})
        return
    text = f"{type(error).__name__}: {error}"
    log.error("%s failed: %s", name, text, exc_info=error)
    write_json(run / FAILED, {"error": text, "traceback": traceback.format_exception(error)})


def write_run_names(out: Path, planned: Sequence[PlannedRun]) -> None:
    """Write the names of the runs in the folder `out`, earlier ones included, for a comparison of all of them."""
    path = out / RUNS
    known = read_json(path, "the names of runs") if path.exists() else {}
    write_json(path, known | {one.name: one.method for one in planned})
