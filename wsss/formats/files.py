"""The file of another program."""

from pathlib import Path

from wsss.data.lists import EXPORT_RECORD
from wsss.errors import BadInput


def only_file(path: Path, suffix: str) -> Path:
    """The path itself, or the only file with a suffix in a folder, apart from the record of an export.

    Raises:
        BadInput: the folder has no such file, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(one for one in path.glob(f"*{suffix}") if one.name != EXPORT_RECORD)
    if len(found) != 1:
        shown = f"the files {', '.join(one.name for one in found[:4])}" if found else f"no {suffix} file"
        raise BadInput(path, shown, f"one {suffix} file", "Give the file.")
    return found[0]
