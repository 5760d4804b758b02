"""The commands on datasets: `wsss data info`, `wsss data sbd`, `wsss data shapes`."""

import dataclasses

from wsss.arguments import ParsedSettings
from wsss.errors import BadInput, count_of
from wsss.options import InfoOptions, SBDOptions, ShapesOptions
from wsss.terminal import show


def info(options: InfoOptions, chosen: ParsedSettings) -> None:
    """Describe a dataset and list its bad files.

    Raises:
        BadInput: a run would stop at it.
    """
    from wsss.data.info import overview, render, stops_of
    from wsss.data.open import open_dataset
    from wsss.progress import Progress

    stop = None
    try:
        data = open_dataset(options.data, skip_missing=options.skip_bad, **options.reading())
    except BadInput as error:  # perhaps only missing pictures, which skip_missing tolerates
        stop, data = error, open_dataset(options.data, skip_missing=True, **options.reading())
    if options.split:
        one = {options.split: data.split(options.split)}
        data = dataclasses.replace(data, splits=one, train=options.split, scored_split=None, val=None)
    with Progress(f"check {data.root.name}", sum(map(len, data.splits.values()))) as progress:
        found = overview(data, decode=True, classes=options.classes, progress=lambda done, total: progress.advance())
    bad = sum(len(split["bad"]) for split in found["splits"].values())
    if stop is not None:
        found["stops"].append(str(stop))
    if bad and not options.skip_bad:
        found["stops"].append(f"{bad} bad files, listed with their splits; --skip-bad leaves them out")
    if options.skip_bad:
        found["notes"].append(f"a run with --skip-bad leaves out {bad} bad pictures")
    show(render(found), end="")
    if stops := stops_of(found):
        reasons = count_of(len(stops), "reason")
        raise BadInput(options.data, f"{reasons} to stop a run, listed above", "none", "Correct the data set.")


def sbd(options: SBDOptions, chosen: ParsedSettings) -> None:
    """Make VOC's train_aug masks and list from SBD."""
    from wsss.data.voc import make_segmentation_class_aug

    show(make_segmentation_class_aug(options.sbd, options.voc))


def shapes(options: ShapesOptions, chosen: ParsedSettings) -> None:
    """Generate a small dataset."""
    from wsss.data.shapes import make_shapes

    make_shapes(
        options.out,
        train=options.train,
        val=options.val,
        size=options.size,
        classes=options.classes,
        radii=options.radii,
        seed=options.seed,
    )
    show(f"{options.train} training and {options.val} validation pictures in {options.out}")
