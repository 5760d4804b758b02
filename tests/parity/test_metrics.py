"""The scores equal those of the published evaluation scripts: counts exactly, shares to 1e-9."""

import numpy as np
import pytest

from tests.parity import fixtures, inputs
from wsss.metrics import ConfusionMatrix, ContourCounts, Convention, ThresholdSweep, contour_scores, scores
from wsss.ops.contour import boundary_counts, boundary_matches, tolerance_radius

SIZES = ((60, 80), (75, 50), (48, 64))


def floats(*values: float | None) -> np.ndarray:
    """None as NaN."""
    return np.array(values, np.float64)


def noisy_pair(height: int, width: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    prediction = inputs.mask(height, width, labels, seed, ignore=0.0)
    noise = inputs.array("metric/noise", (height, width), seed) < 0.2
    other = (inputs.array("metric/other", (height, width), seed) * labels).astype(np.uint8)
    prediction[noise] = np.minimum(other, labels - 1)[noise]
    return inputs.mask(height, width, labels, seed), prediction


def scored_pairs(case: str) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    if case == "a":
        return 21, [noisy_pair(32, 40, 21, seed) for seed in range(16)]
    n_labels, drawn, first = {"b": (21, 5, 10), "c": (81, 81, 20)}[case]
    pairs = [noisy_pair(*size, drawn, first + i) for i, size in enumerate(SIZES)]
    if case == "b":
        pairs[0][1][:2, :3] = 6
    return n_labels, pairs


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_scores_of_published_scripts(case: str) -> None:
    file = fixtures.arrays("metrics/scores")
    n_labels, pairs = scored_pairs(case)
    matrix = ConfusionMatrix(n_labels)
    for truth, prediction in pairs:
        matrix.add(truth, prediction, case)
    np.testing.assert_array_equal(matrix.counts, file[f"{case}_confusion"])
    np.testing.assert_array_equal(
        [matrix.counts.diagonal(), matrix.counts.sum(0), matrix.counts.sum(1)], file[f"{case}_tp_p_t"]
    )

    present, nan, zero, devkit = (scores(matrix.counts, name) for name in ("present", "nan", "zero", "devkit"))
    accuracies = floats(present.pixel_accuracy, present.mean_accuracy)
    close = {"rtol": 0, "atol": 1e-9, "equal_nan": True}
    np.testing.assert_allclose(
        [*accuracies, *floats(present.frequency_weighted_iou, present.miou)], file[f"{case}_deeplab"], **close
    )
    np.testing.assert_allclose([*accuracies, nan.miou], file[f"{case}_mmseg"], **close)
    np.testing.assert_allclose(nan.miou, file[f"{case}_chainer_miou"], **close)
    # ChainerCV's matrix ends with the largest label that occurs
    largest = np.flatnonzero(matrix.counts.sum(0) + matrix.counts.sum(1)).max()
    np.testing.assert_array_equal([largest + 1] * 2, file[f"{case}_chainer_shape"])
    np.testing.assert_allclose(zero.miou, file[f"{case}_seam_miou"], **close)
    np.testing.assert_allclose(floats(devkit.miou) * 100, file[f"{case}_devkit_avacc"][None], rtol=0, atol=1e-7)
    np.testing.assert_allclose(floats(*nan.iou), file[f"{case}_iou"], **close)
    np.testing.assert_allclose(floats(zero.clims_fp, zero.clims_fn), file[f"{case}_climsprev_fp_fn"], **close)
    np.testing.assert_allclose(
        floats(nan.irnet_background_fp, nan.irnet_background_fn, nan.irnet_foreground_fp, nan.irnet_foreground_fn),
        file[f"{case}_irn_fp_fn"],
        **close,
    )
    counted = {"a": (21, 21, 21, 21), "b": (5, 6, 21, 21), "c": None}[case]
    if counted:
        assert (present.n_scored, nan.n_scored, zero.n_scored, devkit.n_scored) == counted


def test_threshold_sweep_of_published_scripts() -> None:
    stored = fixtures.arrays("metrics/threshold-sweep")
    sweep = ThresholdSweep(stored["thresholds"].tolist(), 20)
    for i, ((height, width), classes) in enumerate(zip(SIZES, ((2, 7), (2, 11), (7, 14)), strict=True)):
        maps = inputs.blocky(f"metric/cam{i}", 2, height, width, 0, 6)
        maps = maps / (maps.max((1, 2), keepdims=True) + np.float32(1e-5))
        sweep.add(stored[f"gt_{i}"], maps, np.array(classes), f"image {i}")
    mious = [[scored.miou for scored in sweep.scores(convention)] for convention in ("nan", "zero")]
    np.testing.assert_allclose(np.transpose(mious), stored["miou"], rtol=0, atol=1e-9)
    value, scored = sweep.best("nan")
    np.testing.assert_allclose(floats(value, scored.miou), stored["best"], rtol=0, atol=1e-9)


def percent(counts: np.ndarray, convention: Convention = "icam") -> np.ndarray:
    scored = scores(counts, convention)
    return 100 * floats(*scored.iou, scored.miou)


def test_miou_of_icam() -> None:
    stored = fixtures.arrays("icam/miou")
    labels, from_cams, from_posteriors = (ConfusionMatrix(21) for _ in range(3))
    sweep = ThresholdSweep(stored["thresholds"].tolist(), 20)
    for i, (h, w) in enumerate(stored["sizes"].tolist()):
        truth = inputs.mask(h, w, 21, 300 + i, 0.05)
        upper = (np.arange(h)[:, None] < h // 2) & (truth < 255)
        labels.add(truth, np.where(upper, truth, inputs.mask(h, w, 21, 400 + i, 0)), f"image {i}")

        classes = np.array([1, 3, 19][: 1 + i % 3])
        maps = inputs.array(f"icam{i}", (len(classes), h // 4 + 1, w // 4 + 1)).repeat(4, 1).repeat(4, 2)[:, :h, :w]
        maps = np.where(maps == maps.max(0), maps, np.float32(0))
        posteriors = np.concatenate([np.full((1, h, w), 0.45, np.float32), maps])
        posteriors /= posteriors.sum(0)
        from_posteriors.add(truth, label_of_argmax(posteriors, classes), f"image {i}")
        if i == 2:
            maps, classes = maps[:0], classes[:0]
        sweep.add(truth, maps, classes, f"image {i}")
        with_background = np.concatenate([1 - maps.sum(0, keepdims=True), maps])
        from_cams.add(truth, label_of_argmax(with_background, classes), f"image {i}")

    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(percent(labels.counts), stored["png_iou"], **close)
    np.testing.assert_allclose(percent(from_cams.counts), stored["cam_iou"], **close)
    np.testing.assert_allclose(percent(from_posteriors.counts), stored["crf_iou"], **close)
    np.testing.assert_allclose([percent(matrix) for matrix in sweep.matrices()], stored["threshold_iou"], **close)


def label_of_argmax(channels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.append(0, classes + 1).astype(np.uint8)[channels.argmax(0)]


def test_contour_tolerance() -> None:
    stored = fixtures.arrays("icam/fscore")
    radii = [tolerance_radius((h, w)) for h, w in stored["bound_shapes"].tolist()]
    np.testing.assert_array_equal(radii, stored["bound_pix"])


def unpacked(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    h, w = stored["mask_shape"].tolist()
    return np.unpackbits(stored[name])[: h * w].reshape(h, w).astype(bool)


def boundary_map(mask: np.ndarray) -> np.ndarray:
    labels = mask.astype(np.uint8)
    return boundary_matches(labels, labels, 1).truth_matched


def test_boundary_maps() -> None:
    stored = fixtures.arrays("icam/fscore")
    for name in stored["pair_names"].tolist():
        found = boundary_map(unpacked(stored, f"mask_{name}"))
        np.testing.assert_array_equal(found, unpacked(stored, f"bmap_{name}"), name)
        assert found.sum() == stored[f"bmap_sum_{name}"]


def test_boundary_matches_of_pairs() -> None:
    stored = fixtures.arrays("icam/fscore")
    masks = [unpacked(stored, f"mask_{name}").astype(np.uint8) for name in stored["pair_names"].tolist()]
    for a, b, threshold, *expected in stored["pair_table"].tolist():
        one, other = masks[int(a)], masks[int(b)]
        assert boundary_counts(one, other, 1, threshold)[0].tolist() == expected
        maps = boundary_matches(one, other, 1, threshold)
        assert [maps.truth_matched.sum(), maps.prediction_matched.sum()] == expected[:2]
        np.testing.assert_array_equal(maps.truth_matched | maps.truth_missed, boundary_map(one == 1))
        np.testing.assert_array_equal(maps.prediction_matched | maps.prediction_missed, boundary_map(other == 1))


def contour_pairs(stored: dict[str, np.ndarray], run: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and prediction of each picture of a run."""
    n_labels = int(stored[f"{run}_nc"]) + 1
    ignored = {"png": 0.03, "big": 0.01, "onlybg": 0.0}.get(run, 0.02)
    pairs = []
    for i, (h, w) in enumerate(stored[f"{run}_sizes"].tolist()):
        truth = inputs.mask(h, w, n_labels, 100 + i, ignored)
        if f"{run}_im{i}_in" in stored:
            channels, keys = stored[f"{run}_im{i}_in"].astype(np.float32), stored[f"{run}_im{i}_keys"]
            pairs.append((truth, icam_reader(run, channels, keys)))
            continue
        left = (np.arange(w) < w // 2) & (truth < 255)
        prediction = np.where(left, np.roll(truth, (1, 2), (0, 1)), inputs.mask(h, w, n_labels, 200 + i, 0))
        prediction[(prediction == 255) | (i in stored[f"{run}_empties"])] = 0
        pairs.append((truth, prediction))
    return pairs


def icam_reader(run: str, channels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Labels as the published script reads them from maps ("cam") or posteriors ("crf") of labels `keys`."""
    labels = keys + 1 if run.startswith("cam") else keys
    scored = np.zeros((256, *channels.shape[1:]), np.float32)
    scored[labels] = channels
    constant = {"camt": 0.3, "crft": 0.25}.get(run)
    # Without a constant the published reader replaces the background by 1 - sum of everything, even of posteriors.
    scored[0] = 1 - channels.sum(0) if constant is None else constant
    return scored.argmax(0).astype(np.uint8)


@pytest.mark.parametrize("run", ["png", "big", "onlybg", "cam", "camt", "crf", "crft"])
def test_contour_scores(run: str) -> None:
    stored = fixtures.arrays("icam/fscore")
    contour = ContourCounts(int(stored[f"{run}_nc"]))
    each = []
    for i, (truth, prediction) in enumerate(contour_pairs(stored, run)):
        assert (i in stored[f"{run}_empties"]) == (not prediction.any())
        before = contour.counts.copy()
        contour.add(truth, prediction, f"image {i}")
        each.append(contour.counts - before)
    np.testing.assert_array_equal(each, stored[f"{run}_counts"])
    scored = contour_scores(contour.counts)
    np.testing.assert_allclose(scored.f, stored[f"{run}_F_per_class"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scored.mean_f, stored[f"{run}_meanF"], rtol=0, atol=1e-9)
