"""Does a segmenter need pictures of the sizes that it was trained on? Scores it on pictures of their own size, and on enlarged ones.

    python benchmarks/sizes.py --data DATA --weights RUN/segmenter --factor 4

The enlarged pictures are predicted at the sizes of the training, which is the default, and at their full size.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

import wsss
from wsss.data.images import Images
from wsss.stages.predict import PredictSettings, Segmenter


def main() -> None:
    """Print the mIoU on val for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--factor", type=int, default=4)
    options = parser.parse_args()
    val = wsss.open_dataset(options.data).split("val")
    automatic, full = (
        Segmenter(options.weights, settings) for settings in (PredictSettings(), PredictSettings(size="full"))
    )
    for title, segmenter, factor in (
        ("own size", automatic, 1),
        ("enlarged, default", automatic, options.factor),
        ("enlarged, full", full, options.factor),
    ):
        pairs = [(segmenter(picture), truth) for picture, truth in enlarged(val, factor)]
        score = wsss.score([mask for mask, _ in pairs], [truth for _, truth in pairs], len(val.class_names))
        print(f"{title}: {score.miou:.1%}" if score.miou is not None else f"{title}: no labels", flush=True)


def enlarged(images: Images, factor: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures, enlarged by a cubic filter, and their true masks."""
    for index in range(len(images)):
        picture, truth = images.read(index), images.read_mask(index)
        if factor > 1:
            picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        yield picture, truth.repeat(factor, 0).repeat(factor, 1)


if __name__ == "__main__":
    main()
