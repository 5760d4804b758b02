"""Descriptions of what has changed since a stage was made, and the other stages that are outdated by it."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.errors import BadInput, count_of
from wsss.outputs import DONE, STARTED, count_phrase
from wsss.storage import read_json

# Most settings and inputs that one message names
_MAX_NAMED = 5

Tables = Mapping[str, Any]


def is_input(value: Any) -> bool:
    """Whether a value in a record describes pictures, a folder or a file, as opposed to a setting."""
    return isinstance(value, Mapping) and ("fingerprint" in value or "identity" in value)


def identity(described: Any) -> Any:
    """The part of an input's description that identifies it: its content, not its path or name."""
    if is_input(described):
        return described.get("fingerprint", described.get("identity"))
    if isinstance(described, Mapping):
        return {key: identity(value) for key, value in described.items()}
    return described


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], before: Tables, now: Tables) -> str:
    """Why an existing stage is not the wanted one.

    Args:
        found, wanted: their records.
        before, now: content of their inputs, by input name: `Images.table()`, or digests of files by name.
    """
    if (found["kind"], found["makes"]) != (wanted["kind"], wanted["makes"]):
        return f"it is not a `{wanted['kind']}` stage that makes {wanted['makes']}"
    old, new = dict(_leaves(found["inputs"])), dict(_leaves(wanted["inputs"]))
    names = [key for key in sorted({*old, *new}) if _comparable(old, key) != _comparable(new, key)]
    parts = [_change(key, old, new, before.get(key), now.get(key)) for key in names[:_MAX_NAMED]]
    if found["title"] != wanted["title"]:
        parts.insert(0, f"it was {found['title']} and is now {wanted['title']}")
    return "; ".join(parts) + (f"; and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings and inputs by dotted name."""
    if isinstance(value, Mapping) and value and not is_input(value):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), value


def _comparable(leaves: Mapping[str, Any], key: str) -> str | None:
    """A value in a form that distinguishes all values that records distinguish (1 and 1.0, for example)."""
    return repr(identity(leaves[key])) if key in leaves else None


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any], before: Any, now: Any) -> str:
    known = before is not None and now is not None
    if known and key in old and key in new:
        was, is_now = old[key], new[key]
        if "fingerprint" in was and "fingerprint" in is_now:
            return "; ".join(pictures_changed(before, now))
        if "folder" in was and "folder" in is_now:
            return "; ".join(_files(was, is_now, before, now))
    texts = [_shown(leaves[key]) if key in leaves else "absent" for leaves in (old, new)]
    return f"{key} was {texts[0]} and is now {texts[1]}"


def _shown(value: Any) -> str:
    if not is_input(value):
        return repr(value)
    name = value.get("folder") or value.get("file") or value.get("images")
    return f"{name} ({identity(value)})"


def _files(was: Mapping[str, Any], is_now: Mapping[str, Any], before: Any, now: Any) -> Iterator[str]:
    """The differences between two states of a folder."""
    folder, stage = os.path.basename(is_now["folder"]), is_now.get("stage")
    if was.get("of") != is_now.get("of"):
        yield f"{folder} was made again with other settings or inputs"
        return
    reported = {*is_now.get("edited", ()), *is_now.get("added", ())}
    changed = [name for name in now if name in before and before[name] != now[name]]
    edited = [name for name in changed if name in reported]
    if edited:
        pronoun = "it" if len(edited) == 1 else "them"
        yield f"in {folder}, {count_phrase(edited, 'file')} edited after `{stage}` wrote {pronoun}"
    for kind, names in (
        ("changed", [name for name in changed if name not in reported]),
        ("added", [name for name in now if name not in before]),
        ("removed", [name for name in before if name not in now]),
    ):
        if names:
            yield f"in {folder}, {count_phrase(names, 'file')} {kind}"


def pictures_changed(before: Any, now: Any) -> Iterator[str]:
    """The differences between two lists of pictures, from their tables."""
    if before["class_names"] != now["class_names"]:
        lists = [", ".join(table["class_names"][:20]) for table in (before, now)]
        yield f"the classes were {lists[0]} and are now {lists[1]}"
    for name in sorted({*before["options"], *now["options"]}):
        values = [table["options"].get(name, "absent") for table in (before, now)]
        if values[0] != values[1]:
            yield f"{name} was {values[0]} and is now {values[1]}"
    old, new = ({row[0]: row for row in table["pictures"]} for table in (before, now))
    both = [name for name in new if name in old]
    for kind, names in (
        ("new", [_file(new[name]) for name in new if name not in old]),
        ("gone", [_file(old[name]) for name in old if name not in new]),
    ):
        if names:
            are = "are" if len(names) > 1 else "is"
            yield f"{count_of(len(names), 'picture')} {are} {kind}: {first_names(names)}"
    content = [_file(new[name]) for name in both if old[name][1] != new[name][1]]
    if content:
        yield f"the content of {count_of(len(content), 'picture')} changed: {first_names(content)}"
    tags = [
        f"{_file(new[name])}: {_tags(old[name], before)} -> {_tags(new[name], now)}"
        for name in both
        if _tags(old[name], before) != _tags(new[name], now)
    ]
    if tags:
        yield f"tags of {count_of(len(tags), 'picture')} changed: {first_names(tags)}"
    masks = [_file(new[name]) for name in both if old[name][3] != new[name][3]]
    if masks:
        yield f"the true masks of {count_of(len(masks), 'picture')} changed: {first_names(masks)}"
    if both == list(new) and len(old) == len(new) and list(old) != list(new):
        yield "the order of the pictures changed"


def _file(row: Sequence[Any]) -> str:
    return f"{row[0]}{row[4]}"


def _tags(row: Sequence[Any], table: Any) -> str:
    names = table["class_names"]
    return ", ".join(names[label] for label in row[2]) or "none"


def first_names(names: Sequence[str]) -> str:
    """For example `a, b, c and 3 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def changed_inputs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[Any]:
    """Old identities of the inputs of a stage that have changed."""
    old, new = dict(_leaves(found["inputs"])), dict(_leaves(wanted["inputs"]))
    return {
        identity(value)
        for key, value in old.items()
        if is_input(value) and _comparable(old, key) != _comparable(new, key)
    }


def outdated(first: Sequence[Path], gone: Collection[Any], folders: Iterable[Path]) -> list[Path]:
    """The stages that are outdated and have to be made again.

    Args:
        first: stages that are known to be outdated.
        gone: identities of inputs that no longer exist; stages made from them are outdated.
        folders: folders of the stages to check.

    Returns:
        `first`, the stages made from inputs that no longer exist, and all stages made from any of these.
    """
    made_from = {folder: _sources(folder) for folder in dict.fromkeys(folders)}
    stale = {folder.resolve(): folder for folder in first}
    changed = True
    while changed:
        changed = False
        for folder, sources in made_from.items():
            is_stale = any(source in gone or path in stale for source, path in sources)
            if is_stale and folder.resolve() not in stale:
                stale[folder.resolve()] = folder
                changed = True
    return list(stale.values())


def stages_in_run(out: Path) -> list[Path]:
    """The folders of stages in the same run."""
    return sorted({path.parent for marker in (DONE, STARTED) for path in out.parent.glob(f"*/{marker}")})


def _sources(folder: Path) -> list[tuple[Any, Path | None]]:
    """Identity of each input of a stage, and its folder if it has one."""
    marker = folder / DONE if (folder / DONE).exists() else folder / STARTED
    try:
        leaves = _leaves(read_json(marker, "the record of a stage")["inputs"])
        return [
            (identity(value), Path(os.path.normpath(folder.resolve() / value["folder"])) if "folder" in value else None)
            for _, value in leaves
            if is_input(value)
        ]
    except (BadInput, KeyError, TypeError):  # reported when that stage itself is read
        return []
