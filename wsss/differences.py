"""What has changed since a stage was made, in words; and which other stages that concerns."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.errors import BadInput
from wsss.outputs import DONE, STARTED, counted
from wsss.storage import read_json

# Settings and inputs that one message names
_MOST = 5

Tables = Mapping[str, Any]


def is_input(value: Any) -> bool:
    """Whether a record's value stands for pictures, a folder or a file, not for a setting."""
    return isinstance(value, Mapping) and ("fingerprint" in value or "identity" in value)


def identity(described: Any) -> Any:
    """What of a described input decides whether it is the same one: not where it lies, nor what it is called."""
    if is_input(described):
        return described.get("fingerprint", described.get("identity"))
    if isinstance(described, Mapping):
        return {key: identity(value) for key, value in described.items()}
    return described


def difference(found: Mapping[str, Any], asked: Mapping[str, Any], before: Tables, now: Tables) -> str:
    """Why a stage that is there is not the one that is asked for.

    Args:
        found, asked: their records.
        before, now: what their inputs hold, by the names of the inputs: `Images.table()`, or digests of files by name.
    """
    if (found["kind"], found["makes"]) != (asked["kind"], asked["makes"]):
        return f"it is no `{asked['kind']}` stage that makes {asked['makes']}"
    old, new = dict(_leaves(found["inputs"])), dict(_leaves(asked["inputs"]))
    names = [key for key in sorted({*old, *new}) if _told_apart(old, key) != _told_apart(new, key)]
    parts = [_changed(key, old, new, before.get(key), now.get(key)) for key in names[:_MOST]]
    if found["title"] != asked["title"]:
        parts.insert(0, f"it was {found['title']} and is {asked['title']} now")
    return "; ".join(parts) + (f"; and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings and inputs by dotted name."""
    if isinstance(value, Mapping) and value and not is_input(value):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), value


def _told_apart(leaves: Mapping[str, Any], key: str) -> str | None:
    """A value as records tell it apart (1 is not 1.0)."""
    return repr(identity(leaves[key])) if key in leaves else None


def _changed(key: str, old: Mapping[str, Any], new: Mapping[str, Any], before: Any, now: Any) -> str:
    known = before is not None and now is not None
    if known and key in old and key in new:
        was, is_now = old[key], new[key]
        if "fingerprint" in was and "fingerprint" in is_now:
            return "; ".join(pictures_changed(before, now))
        if "folder" in was and "folder" in is_now:
            return "; ".join(_files(was, is_now, before, now))
    texts = [_shown(leaves[key]) if key in leaves else "not there" for leaves in (old, new)]
    return f"{key} was {texts[0]} and is {texts[1]} now"


def _shown(value: Any) -> str:
    if not is_input(value):
        return repr(value)
    name = value.get("folder") or value.get("file") or value.get("images")
    return f"{name} ({identity(value)})"


def _files(was: Mapping[str, Any], is_now: Mapping[str, Any], before: Any, now: Any) -> Iterator[str]:
    """What is different in a folder."""
    folder, stage = os.path.basename(is_now["folder"]), is_now.get("stage")
    if was.get("of") != is_now.get("of"):
        yield f"{folder} was made again from other settings or inputs"
        return
    by_hand = {*is_now.get("edited", ()), *is_now.get("added", ())}
    changed = [name for name in now if name in before and before[name] != now[name]]
    edited = [name for name in changed if name in by_hand]
    if edited:
        it = "it" if len(edited) == 1 else "them"
        yield f"in {folder}, {counted(edited, 'file')} edited after `{stage}` wrote {it}"
    for kind, names in (
        ("changed", [name for name in changed if name not in by_hand]),
        ("added", [name for name in now if name not in before]),
        ("removed", [name for name in before if name not in now]),
    ):
        if names:
            yield f"in {folder}, {counted(names, 'file')} {kind}"


def pictures_changed(before: Any, now: Any) -> Iterator[str]:
    """What is different in pictures, by their tables."""
    if before["class_names"] != now["class_names"]:
        lists = [", ".join(table["class_names"][:20]) for table in (before, now)]
        yield f"the classes were {lists[0]} and are {lists[1]} now"
    for name in sorted({*before["options"], *now["options"]}):
        values = [table["options"].get(name, "not there") for table in (before, now)]
        if values[0] != values[1]:
            yield f"{name} was {values[0]} and is {values[1]} now"
    old, new = ({row[0]: row for row in table["pictures"]} for table in (before, now))
    both = [name for name in new if name in old]
    for kind, names in (
        ("new", [_file(new[name]) for name in new if name not in old]),
        ("gone", [_file(old[name]) for name in old if name not in new]),
    ):
        if names:
            are = "are" if len(names) > 1 else "is"
            yield f"{_count(names, 'picture')} {are} {kind}: {_some(names)}"
    content = [_file(new[name]) for name in both if old[name][1] != new[name][1]]
    if content:
        yield f"the content of {_count(content, 'picture')} changed: {_some(content)}"
    tags = [
        f"{_file(new[name])}: {_tags(old[name], before)} -> {_tags(new[name], now)}"
        for name in both
        if _tags(old[name], before) != _tags(new[name], now)
    ]
    if tags:
        yield f"tags of {_count(tags, 'picture')} changed: {_some(tags)}"
    masks = [_file(new[name]) for name in both if old[name][3] != new[name][3]]
    if masks:
        yield f"the true masks of {_count(masks, 'picture')} changed: {_some(masks)}"
    if both == list(new) and len(old) == len(new) and list(old) != list(new):
        yield "the order of the pictures changed"


def _file(row: Sequence[Any]) -> str:
    return f"{row[0]}{row[4]}"


def _tags(row: Sequence[Any], table: Any) -> str:
    names = table["class_names"]
    return ", ".join(names[label] for label in row[2]) or "none"


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def not_the_same(found: Mapping[str, Any], asked: Mapping[str, Any]) -> set[Any]:
    """Identities of the inputs of a stage that are others now."""
    old, new = dict(_leaves(found["inputs"])), dict(_leaves(asked["inputs"]))
    return {
        identity(value)
        for key, value in old.items()
        if is_input(value) and _told_apart(old, key) != _told_apart(new, key)
    }


def outdated(first: Sequence[Path], gone: Collection[Any], folders: Iterable[Path]) -> list[Path]:
    """The stages that have to be made again.

    Args:
        first: some of them.
        gone: identities of inputs that are not there any more; what was made from one has to be made again.
        folders: of the stages that are looked at.

    Returns:
        `first`, those made from what is gone, and all that were made from any of these.
    """
    made_from = {folder: _sources(folder) for folder in dict.fromkeys(folders)}
    stale = {folder.resolve(): folder for folder in first}
    grown = True
    while grown:
        grown = False
        for folder, sources in made_from.items():
            old = any(what in gone or where in stale for what, where in sources)
            if old and folder.resolve() not in stale:
                stale[folder.resolve()] = folder
                grown = True
    return list(stale.values())


def beside(out: Path) -> list[Path]:
    """The folders of stages in the same run."""
    return sorted({path.parent for marker in (DONE, STARTED) for path in out.parent.glob(f"*/{marker}")})


def _sources(folder: Path) -> list[tuple[Any, Path | None]]:
    """Identity, and folder where there is one, of what a stage was made from."""
    marker = folder / DONE if (folder / DONE).exists() else folder / STARTED
    try:
        leaves = _leaves(read_json(marker, "the record of a stage")["inputs"])
        return [
            (identity(value), Path(os.path.normpath(folder.resolve() / value["folder"])) if "folder" in value else None)
            for _, value in leaves
            if is_input(value)
        ]
    except (BadInput, KeyError, TypeError):  # says so when its turn comes
        return []
