"""What votes of regions say about each class, and how right they are: why they help some classes and not others.

    python benchmarks/votes.py OUT/NAME/seed-0 --data D

The folder is one of `benchmarks/region_table.py` with the rows `levels` and `votes`; D is its data set, with true masks. For each class it prints:

- the correlation of votes and maps, and the weight of the votes;
- the IoU of the masks of levels and of votes;
- the share that is right of the area that averaged maps, and balanced votes alone, give to the class; regions of all levels count;
- the mean of the 8 highest similarities of the background of pictures with the class, to that of pictures without it, and to the class.
"""

import argparse
from pathlib import Path

import numpy as np

import wsss
from wsss.data.maps import read_matching_cams
from wsss.ops.retrieval import OF_CLASS
from wsss.refiners.crf import MaskSettings
from wsss.refiners.region_votes import AGREEMENT, BALANCE, against_background, probabilities
from wsss.regions.files import read_regions_of
from wsss.run import read_record
from wsss.segmenters.retrieval import opened_bank
from wsss.stages.evaluate import SCORES
from wsss.storage import read_json


def right(data: wsss.Images, folder: Path, balance: np.ndarray) -> np.ndarray:
    """Of the area that averaged maps and votes give to each class, the share that is right, (2, classes)."""
    votes, threshold = folder / "votes", read_record(folder / "votes/cams-votes")["result"]["threshold"]
    given, correct = np.zeros((2, len(data.class_names))), np.zeros((2, len(data.class_names)))
    for index, name in enumerate(data.names):
        truth = data.read_mask(index)
        classes, maps = read_matching_cams(data, votes / "cams-levels", index, truth.shape)
        regions = read_regions_of(data, folder.parent / "regions", index, truth.shape)
        shares = np.load(votes / "votes" / f"{name}.npz")["shares"]
        if not len(shares):
            continue
        of_maps = (
            regions.sums(against_background(probabilities(maps, MaskSettings(threshold=threshold))))
            / regions.areas[:, None]
        )
        true = regions.sums((truth == classes[:, None, None] + 1).astype(np.float32))
        for which, called in enumerate((of_maps > 0.5, shares[:, 1:] > balance[classes])):
            given[which, classes] += regions.areas @ called
            correct[which, classes] += (true * called).sum(axis=0)
    return correct / np.maximum(given, 1)


def background_similarities(folder: Path, label: int) -> list[float]:
    """Of the background of pictures with a class: to the background of other pictures, and to the class in other pictures."""
    bank, *_ = opened_bank(folder / "votes/votes-bank")
    vectors, pictures = bank.unit_vectors(), np.asarray(bank.pictures)
    with_class = np.isin(pictures, pictures[bank.labels == label])
    similar = vectors[with_class & (bank.labels == 0)] @ vectors.T
    own = pictures[with_class & (bank.labels == 0)][:, None] == pictures
    columns = ((bank.labels == 0) & ~with_class, bank.labels == label)
    return [float(np.sort(np.where(own, -1, similar)[:, of], axis=1)[:, -OF_CLASS:].mean()) for of in columns]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    images = wsss.open_dataset(given.data).split("train")
    agreement, balance = (read_json(given.folder / "votes/votes" / name, "votes") for name in (AGREEMENT, BALANCE))
    weights = read_record(given.folder / "votes/cams-votes")["result"]["weights of the votes"]
    shares = 100 * right(images, given.folder, np.array([balance[name] for name in images.class_names]))
    scores = [
        read_json(given.folder / f"{row}-scores" / SCORES, "scores")["scores"]["iou"][1:] for row in ("levels", "votes")
    ]
    print(
        "| | correlation | weight | IoU of levels, votes | right of maps, votes | background: to others, to the class |"
    )
    print("|---|---|---|---|---|---|")
    for number, name in enumerate(images.class_names):
        before, after = (100 * score[number] for score in scores)
        maps, votes = shares[:, number]
        others, own = background_similarities(given.folder, number + 1)
        print(
            f"| {name} | {agreement[name]:.2f} | {weights[name]:.2f} | {before:.1f}, {after:.1f} "
            f"| {maps:.0f} %, {votes:.0f} % | {others:.2f}, {own:.2f} |"
        )


if __name__ == "__main__":
    main()
