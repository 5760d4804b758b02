"""Dense CRF against a pixel-by-pixel lattice, and what must hold for any picture."""

import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.parity import inputs
from wsss.errors import BadInput
from wsss.ops.crf import (
    PRESETS,
    DenseCRF,
    ahead,
    dense_crf,
    field,
    filters,
    inference,
    lattice,
    unary_from_labels,
    unary_from_scores,
    vertices,
    wrapped_bgr,
)
from wsss.ops.crf.compiling import Source
from wsss.ops.crf.features import bilateral_features, position_features
from wsss.ops.crf.filters import PermutohedralFilter
from wsss.ops.crf.plain import LatticeFilter, mean_field

F = np.float32
IMAGE = inputs.image(97, 101, 4)  # three strips, and no multiple of four pixels


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def energies(labels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return 3 * inputs.array(f"unary {labels}", (labels, height, width), seed)


def slow_simplex(feature: np.ndarray) -> list[tuple[tuple[int, ...], np.float32]]:
    """(key, weight) of the vertices around one point, in plain arithmetic."""
    d = len(feature)
    sigma = F(np.sqrt(2 / 3) * (d + 1))
    scaled = [f * F(float(sigma) / np.sqrt((i + 1) * (i + 2))) for i, f in enumerate(feature)]
    elevated, running = [F(0)] * (d + 1), F(0)
    for j in range(d, 0, -1):
        elevated[j] = running - F(j) * scaled[j - 1]
        running = running + scaled[j - 1]
    elevated[0] = running
    inverse = F(1 / (d + 1))
    multiples = [int(np.rint(e * inverse)) for e in elevated]
    rest = [F((d + 1) * m) for m in multiples]
    rank = [0] * (d + 1)
    for i, j in itertools.combinations(range(d + 1), 2):
        rank[i if elevated[i] - rest[i] < elevated[j] - rest[j] else j] += 1
    for i in range(d + 1):
        rank[i] += sum(multiples)
        shift = (d + 1) * ((rank[i] < 0) - (rank[i] > d))
        rank[i], rest[i] = rank[i] + shift, rest[i] + F(shift)
    barycentric = [F(0)] * (d + 2)
    for i in range(d + 1):
        t = (elevated[i] - rest[i]) * inverse
        barycentric[d - rank[i]] += t
        barycentric[d + 1 - rank[i]] -= t
    barycentric[0] += F(1) + barycentric[d + 1]
    corner = [[r if k <= d - r else r - (d + 1) for k in range(d + 1)] for r in range(d + 1)]
    return [(tuple(int(rest[i]) + corner[r][rank[i]] for i in range(d)), barycentric[r]) for r in range(d + 1)]


def slow_filter(features: np.ndarray, x: np.ndarray) -> np.ndarray:
    d, n = features.shape
    simplices = [slow_simplex(feature) for feature in features.T]
    value = {key: np.zeros(len(x)) for simplex in simplices for key, _ in simplex}
    if n % 4:
        value |= {key: np.zeros(len(x)) for key, _ in slow_simplex(np.zeros(d, F)) if key not in value}
    for p, simplex in enumerate(simplices):
        for key, weight in simplex:
            value[key] = value[key] + weight * x[:, p]
    for j in range(d + 1):
        step = np.array([d if i == j else -1 for i in range(d)])
        ends = {key: (tuple((key + step).tolist()), tuple((key - step).tolist())) for key in value}
        value = {key: value[key] + (value.get(n1, 0) + value.get(n2, 0)) / 2 for key, (n1, n2) in ends.items()}
    out = [sum(weight * value[key] for key, weight in simplex) for simplex in simplices]
    return np.stack(out, 1) / (1 + 2.0**-d)


def slow_dense_crf(image: np.ndarray, unary: np.ndarray, crf: DenseCRF) -> np.ndarray:
    labels, height, width = unary.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    colours = image.reshape(-1, 3).T
    position = np.stack([F(x) / F(crf.gaussian_sxy), F(y) / F(crf.gaussian_sxy)])
    colour = np.stack([F(x) / F(crf.bilateral_sxy), F(y) / F(crf.bilateral_sxy), *F(colours) / F(crf.bilateral_srgb)])
    kernels = []
    for features, weight in ((position, crf.gaussian_weight), (colour, crf.bilateral_weight)):
        norm = 1 / np.sqrt(slow_filter(features, np.ones((1, height * width))) + 1e-20)
        kernels.append((features, norm, weight))
    energy = unary.reshape(labels, -1).astype(np.float64)
    logits = -energy
    for _ in range(crf.iterations + 1):
        q = np.exp(logits - logits.max(0))
        q /= q.sum(0)
        logits = -energy + sum(weight * norm * slow_filter(features, norm * q) for features, norm, weight in kernels)
    return q.reshape(unary.shape)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, DenseCRF]:
    height, width, labels = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(2, 6))
    greys = draw(st.sampled_from([st.integers(0, 255), st.sampled_from([0, 1, 2]), st.sampled_from([100, 104, 230])]))
    image = draw(arrays(np.uint8, (height, width, 3), elements=greys))
    unary = draw(arrays(np.float32, (labels, height, width), elements=st.floats(0, 12, width=16)))
    crf = DenseCRF(
        draw(st.sampled_from([1.0, 3.0])), 3, draw(st.sampled_from([5.0, 67.0])), draw(st.sampled_from([3.0, 13.0])), 4,
        draw(st.integers(0, 3)),
    )  # fmt: skip
    return image, unary, crf


@settings(max_examples=40, deadline=None)
@given(problems())
def test_agrees_with_a_plain_lattice(problem):
    image, unary, crf = problem
    expected = slow_dense_crf(image, unary, crf)
    np.testing.assert_allclose(dense_crf(image, unary, crf), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(dense_crf(image, torch.from_numpy(unary), crf).numpy(), expected, rtol=0, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms())
def test_labels_are_exchangeable_and_sum_to_one(problem, random):
    image, unary, crf = problem
    q = dense_crf(image, unary, crf)
    assert q.min() >= 0
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-6)
    order = random.sample(range(len(unary)), len(unary))
    np.testing.assert_allclose(dense_crf(image, unary[order], crf), q[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [2, 4, 5, 8, 9, 17, 24, 25, 33, 49])
def test_any_number_of_labels(labels):
    unary, crf = energies(labels, 97, 101), dataclasses.replace(PRESETS["irn"], iterations=2)
    kernels = [
        LatticeFilter(torch.from_numpy(f)) for f in (bilateral_features(IMAGE, 50, 5), position_features((97, 101), 3))
    ]
    (q,) = mean_field([torch.from_numpy(unary).flatten(1)], list(zip(kernels, (10, 3), strict=True)), 2)
    np.testing.assert_allclose(dense_crf(IMAGE, unary, crf), q.numpy().reshape(unary.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [(3, 3), (2, 4, 3), (3, 21), (5, 2)])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_several_unaries_are_independent(labels, convert):
    unaries = [convert(energies(n, 97, 101, seed)) for seed, n in enumerate(labels)]
    together = dense_crf(IMAGE, unaries, PRESETS["irn"])
    assert len(together) == len(labels)
    for unary, q in zip(unaries, together, strict=True):
        np.testing.assert_allclose(
            np.asarray(q), np.asarray(dense_crf(IMAGE, unary, PRESETS["irn"])), rtol=0, atol=2.5e-5
        )
    assert dense_crf(IMAGE, [], PRESETS["irn"]) == []


@pytest.mark.parametrize("labels", [3, 21])
def test_threads_do_not_change_a_bit(labels):
    unary = energies(labels, 97, 101)
    one = dense_crf(IMAGE, unary, PRESETS["deeplab"], threads=1)
    for threads in (2, 3, 7, None):
        inference._recent.clear()
        assert dense_crf(IMAGE, unary, PRESETS["deeplab"], threads=threads).tobytes() == one.tobytes()


def test_calls_side_by_side():
    sizes = [(60 + 7 * i, 80) for i in range(inference.RECENT + 2)]

    def run(size: tuple[int, int]) -> bytes:
        return dense_crf(inputs.image(*size), energies(3, *size), PRESETS["irn"], threads=2).tobytes()

    alone = [run(size) for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, sizes * 3)) == alone * 3
    assert len(inference._recent) == inference.RECENT


def in_a_child(_: int) -> bytes:
    return dense_crf(IMAGE, energies(3, 97, 101), PRESETS["irn"], threads=2).tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_process_has_threads_of_its_own():
    expected = in_a_child(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(in_a_child, range(4)).get(timeout=60) == [expected] * 4


def test_compiled_code_is_tied_to_the_text_of_all_modules():
    """Numba itself looks only at the module of the function that it starts from."""
    dense_crf(IMAGE, energies(3, 97, 101), PRESETS["irn"])
    text = b"".join(path.read_bytes() for path in sorted(Path(inference.__file__).parent.glob("*.py")))
    source = f"Source({hashlib.sha256(text).hexdigest()})"
    assert str(numba.typeof(Source())) == source
    entries = [
        function
        for module in (field, filters, lattice, vertices)
        for function in vars(module).values()
        if hasattr(function, "stats") and function.stats.cache_path
    ]
    assert len({function.py_func.__name__ for function in entries}) == 7
    for function in entries:
        assert all(source in str(signature[0]) for signature in function.signatures)


@pytest.mark.parametrize("labels", [(2, 2), (2,), (3, 4), (5, 2)])
def test_weights_that_are_not_kept_and_overwritten_energies_give_equal_bytes(labels, monkeypatch):
    """What saves memory with large pictures changes no bit."""
    unaries = [energies(count, 97, 101, seed) for seed, count in enumerate(labels)]
    expected = dense_crf(IMAGE, unaries, PRESETS["irn"])
    monkeypatch.setattr(lattice, "KEPT", 0)
    found = dense_crf(IMAGE, unaries, PRESETS["irn"])
    given = [unary.copy() for unary in unaries]
    written = dense_crf(IMAGE, given, PRESETS["irn"], threads=2, overwrite=True)
    for one, other, into, memory in zip(expected, found, written, given, strict=True):
        assert one.tobytes() == other.tobytes() == into.tobytes()
        assert np.shares_memory(into, memory)


def test_uniform_picture_and_unary_stay_uniform():
    q = dense_crf(np.full((40, 50, 3), 7, np.uint8), np.ones((5, 40, 50), F), PRESETS["psa"])
    np.testing.assert_allclose(q, 0.2, atol=1e-6)


def test_colour_edges_hold_and_noise_goes():
    """A noisy labelling of two flat halves comes out as the halves."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    truth = (np.arange(60) >= 30).astype(int) * np.ones((40, 1), int)
    flipped = np.where(inputs.array("flip", (40, 60)) < 0.2, 1 - truth, truth)
    q = dense_crf(image, unary_from_labels(flipped, 2, 0.7), PRESETS["irn"])
    np.testing.assert_array_equal(q.argmax(0), truth)


def test_infinite_energy_forbids_a_label():
    unary = energies(3, 97, 101)
    unary[1, 20:40] = np.inf
    for one in (unary, torch.from_numpy(unary)):
        q = np.asarray(dense_crf(IMAGE, one, PRESETS["irn"]))
        assert q[1, 20:40].max() < 1e-20
        assert np.isfinite(q).all()


def test_memory_order_and_float_width_do_not_matter():
    unary = energies(3, 97, 101)
    q = dense_crf(IMAGE, unary, PRESETS["irn"])
    turned = np.asfortranarray(unary.astype(np.float64))
    np.testing.assert_array_equal(dense_crf(np.asfortranarray(IMAGE), turned, PRESETS["irn"]), q)
    assert dense_crf(IMAGE, turned, PRESETS["irn"]).dtype == np.float32
    tensor = torch.from_numpy(turned).requires_grad_()
    result = dense_crf(IMAGE, tensor, PRESETS["irn"])
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), q, rtol=0, atol=2e-5)


def test_picture_forms():
    unary = energies(3, 97, 101)
    for picture, shown in (("bgr", IMAGE[..., ::-1]), ("wrapped_bgr", wrapped_bgr(IMAGE))):
        q = dense_crf(IMAGE, unary, DenseCRF(picture=picture))
        np.testing.assert_array_equal(q, dense_crf(shown, unary, DenseCRF()))
        assert np.abs(q - dense_crf(IMAGE, unary, DenseCRF())).max() > 1e-4


def test_wrapped_bgr_by_hand():
    # R 123 - 122.675 = 0.325 -> 0, G 116 - 116.669 = -0.669 -> 0, B 100 - 104.008 = -4.008 -> -4 -> 252
    np.testing.assert_array_equal(wrapped_bgr(np.array([[[123, 116, 100]]], np.uint8)), [[[252, 0, 0]]])


def test_axes_have_deviations_of_their_own():
    unary = energies(2, 97, 101)
    turned = dense_crf(IMAGE, unary, DenseCRF(bilateral_sxy=(20, 60), bilateral_srgb=(5, 9, 13)))
    same = dense_crf(IMAGE, unary, DenseCRF(bilateral_sxy=(50, 50), bilateral_srgb=(5, 5, 5), gaussian_sxy=(3, 3)))
    np.testing.assert_array_equal(same, dense_crf(IMAGE, unary, DenseCRF()))
    assert np.abs(turned - same).max() > 1e-3


@pytest.mark.parametrize("srgb", [0.2, 0.06])
def test_narrow_kernels_within_the_lattice(srgb):
    """Lattice coordinates of up to 25 000, where products of them no longer fit 64 bits side by side."""
    image, unary = inputs.image(12, 13, 1), energies(2, 12, 13)
    crf = DenseCRF(bilateral_srgb=srgb, iterations=2)
    q = dense_crf(image, unary, crf)
    np.testing.assert_allclose(q, slow_dense_crf(image, unary, crf), rtol=0, atol=1e-4)
    np.testing.assert_allclose(dense_crf(image, torch.from_numpy(unary), crf).numpy(), q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"bilateral_srgb": 0.01}, {"gaussian_sxy": 1e-3}, {"bilateral_sxy": 1e-6}])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_kernels_beyond_the_lattice(changes, convert):
    with pytest.raises(BadInput, match="16-bit"):
        dense_crf(IMAGE, convert(energies(2, 97, 101)), DenseCRF(**changes))


def with_value(value: float) -> np.ndarray:
    unary = energies(3, 97, 101)
    unary[1, 50, 60] = value
    return unary


def with_no_label() -> np.ndarray:
    unary = energies(3, 97, 101)
    unary[:, 50, 60] = np.inf
    return unary


@pytest.mark.parametrize(
    ("image", "unary", "message"),
    [
        (IMAGE.astype(F), energies(3, 97, 101), "float32"),
        (IMAGE[..., 0], energies(3, 97, 101), "uint8"),
        (IMAGE[:0], energies(3, 0, 101), "uint8"),
        (IMAGE.tolist(), energies(3, 97, 101), "list"),
        (IMAGE, energies(3, 101, 97), "97, 101"),
        (IMAGE, energies(3, 97, 101).reshape(3, -1), "97, 101"),
        (IMAGE, energies(3, 97, 101).astype(int), "int"),
        (IMAGE, [[1.0]], "list"),
        (IMAGE, [energies(3, 97, 101), torch.ones(3, 97, 101)], "all in torch"),
        (IMAGE, energies(1, 97, 101), "2 or more"),
        (IMAGE, with_value(np.nan), "NaN"),
        (IMAGE, with_value(-np.inf), "NaN"),
        (IMAGE, with_no_label(), "NaN"),
        (IMAGE, torch.from_numpy(with_value(np.nan)), "NaN"),
        (IMAGE, torch.from_numpy(with_no_label()), "NaN"),
        (IMAGE, torch.ones(3, 97, 101, dtype=torch.int32), "int32"),
    ],
)
def test_bad_pictures_and_unaries(image, unary, message):
    with pytest.raises(BadInput, match=message):
        dense_crf(image, unary, PRESETS["irn"])


def test_bad_threads():
    with pytest.raises(BadInput, match="threads"):
        dense_crf(IMAGE, energies(3, 97, 101), PRESETS["irn"], threads=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"gaussian_sxy": 0}, {"bilateral_sxy": -1}, {"bilateral_srgb": np.nan}, {"bilateral_srgb": (1, 2)},
        {"gaussian_sxy": (1, 2, 3)}, {"gaussian_weight": np.inf}, {"iterations": -1}, {"picture": "yuv"},
    ],
)  # fmt: skip
def test_bad_settings(changes):
    with pytest.raises(BadInput, match=next(iter(changes))):
        DenseCRF(**changes)


def test_unary_from_scores_by_hand():
    scores = np.array([[0.5, 0.0, 2.0, np.nan]], np.float64).repeat(2, 0)
    expected = np.array([np.log(2), np.log(1e5), 0, np.nan], F)
    np.testing.assert_allclose(unary_from_scores(scores)[0], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(unary_from_scores(scores, scale=0.5)[0, 0], -np.log(0.25 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(unary_from_scores(np.array([[1e-3]], np.float16)), -np.log(1e-3), rtol=1e-3)


def test_unary_from_labels_by_hand():
    unary = unary_from_labels(np.array([[0, 2]], np.uint8), 3, 0.7)
    sure, other = -np.log(0.7), -np.log(0.15)
    np.testing.assert_allclose(unary[:, 0], [[sure, other], [other, other], [other, sure]], rtol=1e-6)
    unary = unary_from_labels(np.array([[0, 3]]), 3, 0.7, zero_unsure=True)
    np.testing.assert_allclose(unary[:, 0], [[np.log(3), other], [np.log(3), other], [np.log(3), sure]], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "n_labels", "certainty", "message"),
    [
        (np.zeros((2, 2), int), 1, 0.7, "2 or more"),
        (np.zeros((2, 2), int), 2, 1.0, "certainty"),
        (np.full((2, 2), 255), 3, 0.7, r"255\.\.255"),
        (np.full((2, 2), -1), 3, 0.7, r"-1\.\.-1"),
        (np.zeros((2, 2)), 3, 0.7, "float64"),
    ],
)
def test_bad_labels(labels, n_labels, certainty, message):
    with pytest.raises(BadInput, match=message):
        unary_from_labels(labels, n_labels, certainty)


@pytest.mark.parametrize("scale", [0, 1.5, np.nan])
def test_bad_scale(scale):
    with pytest.raises(BadInput, match="scale"):
        unary_from_scores(np.full((2, 2, 2), 0.5), scale=scale)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7])
def test_filters_of_any_dimension(d):
    features = (12 * inputs.array(f"features {d}", (d, 61)) - 5).astype(F)
    x = inputs.array("x", (2, 61))
    expected = slow_filter(features, x)
    alone = PermutohedralFilter(features, symmetric=False)
    np.testing.assert_allclose(alone(x), expected, rtol=1e-5, atol=1e-6)
    on_torch = LatticeFilter(torch.from_numpy(features), symmetric=False)
    np.testing.assert_allclose(on_torch(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert alone.size == on_torch.size


def test_a_wide_filter_averages_like_a_gaussian():
    """Normalised afterwards, it is the weighted mean with weights exp(-distance^2 / 2), up to a tenth."""
    features = position_features((30, 40), 6)
    x = np.stack([features[0] / 6, np.sin(features[1])]).astype(F)
    distance = ((features[:, :, None] - features[:, None]) ** 2).sum(0)
    weights = np.exp(-distance / 2)
    expected = x @ weights / weights.sum(0)
    kernel = PermutohedralFilter(features, symmetric=False)
    np.testing.assert_allclose(kernel(x) / kernel(np.ones_like(x)), expected, atol=0.1)


@pytest.mark.slow
def test_another_process_compiles_for_all_numbers_of_labels(tmp_path):
    """What `compile_ahead` starts; the process after it finds all code in the cache."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    code = "import wsss.ops.crf as crf; crf.compile_ahead(gently=False); import wsss.ops.crf.ahead as a; assert not crf.is_compiled()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=600)
    subprocess.run([sys.executable, "-m", "wsss.ops.crf.ahead"], env=environment, check=True, timeout=600)
    compiled = sorted(path.name for path in tmp_path.rglob("*.nbc"))
    code = "import wsss.ops.crf as crf; from wsss.ops.crf import ahead; assert crf.is_compiled(); ahead.main([])"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=600)
    assert sorted(path.name for path in tmp_path.rglob("*.nbc")) == compiled
    assert sum(name.startswith("field._mean_field") for name in compiled) == len(ahead.LABELS)
