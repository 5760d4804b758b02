"""What supervised a run, from the records of its stages: tags, pixel labels, and what its networks had been trained on before."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsss.stages.check import read_notes
from wsss.stages.records import Stage
from wsss.stages.thresholds import PIXEL_LABELS, pixel_labels
from wsss.supervision import LEARNED, Networks, of_record, trained_on

TAGS = "tags"
NOTHING = "none"
# of maps for which only the names of the classes were given
WORDS_ALONE = "none, words only"
# what is made one after the other; the last stage of each kind knows all networks behind it
_MADE = ("tags", "weights", "maps", "masks", "predictions")


def supervision(run: Path, stages: Sequence[Stage]) -> dict[str, str]:
    """What supervised the last maps, masks and predictions of a run: lines with the same names for every run.

    Args:
        run: the run folder.
        stages: its finished stages, each after its inputs.
    """
    return dict(_lines(run, stages))


def spoken(lines: Mapping[str, str]) -> dict[str, str]:
    """The lines that have something to say, of which tags and pixel labels always do."""
    return {name: text for name, text in lines.items() if text not in ("", NOTHING) or name in (TAGS, PIXEL_LABELS)}


def _lines(run: Path, stages: Sequence[Stage]) -> Iterator[tuple[str, str]]:
    last = {stage.makes: stage for stage in stages if stage.makes in _MADE}
    yield TAGS, tags_behind(run, stages)
    made = [last[makes] for makes in ("predictions", "weights", "masks", "maps") if makes in last][:1]
    yield PIXEL_LABELS, "".join(pixel_labels(stage.folder) for stage in made)
    networks: Networks = {}
    for stage in last.values():
        networks |= of_record(stage.record)
    by_kind = trained_on(networks)
    for kind in LEARNED:
        yield f"networks trained on {kind}", ", ".join(by_kind.get(kind, [])) or (NOTHING if stages else "")


def tags_behind(run: Path, stages: Sequence[Stage]) -> str:
    """Where the tags of the last maps come from; refined maps have the tags of those that they were made from."""
    every = [stage for stage in stages if stage.makes == "maps"]
    maps = ([stage for stage in every if stage.kind == "localize"] or every)[-1:]
    if any((stage.inputs.get("settings") or {}).get("words_only") for stage in maps):
        return WORDS_ALONE
    # tags are part of a fingerprint, so maps made from predicted tags have another one than the dataset
    taggers = [
        stage.title
        for stage in stages
        for one in maps
        if stage.makes == "tags" and stage.fingerprint != one.fingerprint
    ]
    if taggers:
        return f"predicted by {taggers[0]} from the class names"
    given = read_notes(run).get("opened", {}).get("tags")
    return f"by hand ({Path(given).name})" if given else "by hand"
