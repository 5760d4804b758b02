"""Time of scoring: the threshold sweep and the contour F-score against straightforward implementations.

    python benchmarks/evaluate.py

Both implementations run in turn on the same generated pictures, with one thread each, and must give the same counts; every time is the
fastest of three runs over all pictures, in milliseconds per picture.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from wsss.metrics import ConfusionMatrix, ContourCounts, ThresholdSweep

VOC_SIZE, COCO_SIZE = (375, 500), (480, 640)
THRESHOLDS = [t / 100 for t in range(60)]


def blobs(draw: np.random.Generator, size_hw: tuple[int, int], labels: list[int]) -> np.ndarray:
    """Eight ellipses with some of the labels on background."""
    rows, columns = np.indices(size_hw) / np.reshape(size_hw, (2, 1, 1))
    mask = np.zeros(size_hw, np.uint8)
    for label in draw.choice(labels, 8).tolist():
        (y, x), (height, width) = draw.uniform(0.1, 0.9, 2), draw.uniform(0.05, 0.3, 2)
        mask[((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1] = label
    return mask


def shifted(draw: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """A prediction: the truth a few pixels off, with a ragged outline."""
    prediction = np.roll(truth, draw.integers(-6, 7, 2), (0, 1))
    ragged = cv2.resize(draw.random((truth.shape[0] // 5, truth.shape[1] // 5)), truth.shape[::-1]) < 0.15
    prediction[ragged] = 0
    return prediction


def contour_pictures(size_hw: tuple[int, int], n_classes: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        truth = blobs(draw, size_hw, (draw.choice(n_classes, 3, replace=False) + 1).tolist())
        pictures.append((truth, shifted(draw, truth)))
    return pictures


def sweep_pictures(count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Truth, maps enlarged from stride 16 and scaled to a maximum of 1, and their 1, 2 or 3 classes."""
    draw = np.random.default_rng(0)
    pictures = []
    for i in range(count):
        classes = draw.choice(20, 1 + i % 3, replace=False)
        truth = blobs(draw, VOC_SIZE, (classes + 1).tolist())
        truth[draw.random(VOC_SIZE) < 0.05] = 255
        coarse = draw.random((len(classes), 24, 32), np.float32) ** 3
        maps = np.stack([cv2.resize(one, VOC_SIZE[::-1]) for one in coarse])
        pictures.append((truth, maps / maps.max((1, 2), keepdims=True), classes))
    return pictures


def sweep_in_one_pass(pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    sweep = ThresholdSweep(THRESHOLDS, 20)
    for i, (truth, maps, classes) in enumerate(pictures):
        sweep.add(truth, maps, classes, f"picture {i}")
    return sweep.matrices()


def sweep_one_by_one(pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    matrices = []
    for threshold in THRESHOLDS:
        matrix = ConfusionMatrix(21)
        for i, (truth, maps, classes) in enumerate(pictures):
            with_background = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
            labels = np.append(0, classes + 1).astype(np.uint8)
            matrix.add(truth, labels[with_background.argmax(0)], f"picture {i}")
        matrices.append(matrix.counts)
    return np.stack(matrices)


def contour_from_outlines(pictures: list[tuple[np.ndarray, np.ndarray]], n_classes: int) -> np.ndarray:
    contour = ContourCounts(n_classes)
    for i, (truth, prediction) in enumerate(pictures):
        contour.add(truth, prediction, f"picture {i}")
    return contour.counts


def outline(mask: np.ndarray) -> np.ndarray:
    right, lower, diagonal = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    lower[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    edges = (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)
    edges[-1] = mask[-1] ^ right[-1]
    edges[:, -1] = mask[:, -1] ^ lower[:, -1]
    edges[-1, -1] = False
    return edges


def contour_from_dilated_maps(
    pictures: list[tuple[np.ndarray, np.ndarray]], n_classes: int, present_only: bool
) -> np.ndarray:
    """Outlines as maps of the whole picture, dilated by OpenCV, for every class of the data set or of the picture."""
    counts = np.zeros((n_classes, 4), np.int64)
    for truth, prediction in pictures:
        radius = math.ceil(0.008 * math.hypot(*truth.shape))
        across = np.arange(-radius, radius + 1)
        disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.uint8)
        present = np.union1d(truth, prediction)
        for label in range(1, n_classes + 1):
            if present_only and label not in present:
                continue
            one, other = outline(truth == label), outline(prediction == label)
            near_one, near_other = (cv2.dilate(edges.astype(np.uint8), disk) > 0 for edges in (one, other))
            counts[label - 1] += (one & near_other).sum(), (other & near_one).sum(), one.sum(), other.sum()
    return counts


def compare(what: str, pictures: int, forms: dict[str, Callable[[], np.ndarray]]) -> None:
    """Print the time of each form, and the ratio of each to the first."""
    results = {name: form() for name, form in forms.items()}
    times = dict.fromkeys(forms, math.inf)
    for _ in range(3):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name] = min(times[name], (time.perf_counter() - start) / pictures)
    fastest = next(iter(forms))
    print(what)
    for name, seconds in times.items():
        if not np.array_equal(results[name], results[fastest]):
            raise SystemExit(f"{name}: other counts than {fastest}")
        print(f"  {name:<42}{1e3 * seconds:9.2f} ms  {seconds / times[fastest]:6.1f} x")


def main() -> None:
    cv2.setNumThreads(1)
    maps = sweep_pictures(12)
    compare(
        "60 thresholds, VOC (375 x 500, 1 to 3 maps)",
        len(maps),
        {"one pass": partial(sweep_in_one_pass, maps), "threshold by threshold": partial(sweep_one_by_one, maps)},
    )
    for name, size_hw, n_classes in (("VOC (375 x 500", VOC_SIZE, 20), ("COCO (480 x 640", COCO_SIZE, 80)):
        masks = contour_pictures(size_hw, n_classes, 6)
        compare(
            f"contour F-score, {name}, {n_classes} classes)",
            len(masks),
            {
                "outlines as positions": partial(contour_from_outlines, masks, n_classes),
                "dilated maps of the classes present": partial(contour_from_dilated_maps, masks, n_classes, True),
                "dilated maps of all classes": partial(contour_from_dilated_maps, masks, n_classes, False),
            },
        )


if __name__ == "__main__":
    main()
