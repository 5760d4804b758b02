"""CLIMS against its repository: words, forward passes, losses and gradients, training, published files, maps' scores, labels, masks.

Largest differences measured, as shares of the largest value: forward passes 1.3e-6, in train mode 9e-5 (3e-6 in float64); losses
and gradients 4e-6, on COCO 5e-5, which float64 does not lessen: it is the fixture's; the training in float64 2e-12; walked maps 3e-5.
"""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from wsss import classifier, clip_regions, presets
from wsss.data.augment import CLIP_MEAN, CLIP_STD
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.images import Images
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import read_words
from wsss.methods import cam, clims
from wsss.metrics import ThresholdSweep, scores
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.networks.clip_resnet import ResNetCLIP, resnet_from_openai
from wsss.pretrained import openai_tokenizer
from wsss.refiners import crf, irnet
from wsss.stages.train import Training, make_optimizer, poly_factor

pytestmark = pytest.mark.usefixtures("one_torch_thread")

COCO_CLASSES = tuple(COCO_CATEGORIES.values())
CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
TEMPLATE = clims.CLIMSSettings.template
NAMES = ("object_text", "background_text", "suppression", "area")


def fixture(name: str):
    return fixtures.arrays(f"clims/{name}")


@functools.cache
def clip(kind: str, seed: int, dtype: torch.dtype = torch.float32) -> CLIP | ResNetCLIP:
    """The small CLIP of the fixtures."""
    shapes = fixtures.table(f"clims/manifest-tiny-clip-{kind}.json")["shapes"]
    state = {
        name: torch.from_numpy(np.asarray(inputs.tensor(name, tuple(shape), seed))) for name, shape in shapes.items()
    }
    vocabulary = Vocabulary(openai_tokenizer(), 77)
    if kind == "rn":
        model: CLIP | ResNetCLIP = ResNetCLIP(resnet_from_openai(state, "fixture"), vocabulary)
    else:
        model = CLIP(from_openai(state, "fixture"), vocabulary)
    return model.requires_grad_(False).to(dtype).eval()


def filled(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(np.asarray(inputs.tensor(name, tuple(value.shape), seed))))
    return network


def nothing(classes: tuple[str, ...]) -> Images:
    return Images("none", (), (), classes, np.zeros((0, len(classes)), bool), ())


def learning(
    settings: clims.CLIMSSettings, network: torch.nn.Module, teacher: CLIP | ResNetCLIP, classes: tuple[str, ...]
) -> clims.CLIMSObjective:
    images = nothing(classes)
    return clims.CLIMSObjective(settings, network, {}, teacher, settings.read_words(images), images)


def batch(height: int, width: int, seeds, mean=inputs.IMAGENET_MEAN, std=inputs.IMAGENET_STD) -> torch.Tensor:
    pictures = [inputs.normalised(inputs.image(height, width, seed), mean, std) for seed in seeds]
    return torch.from_numpy(np.stack(pictures))


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    """Within a share of the largest value."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def close_stats(value: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    """Mean, deviation, sum and largest value; of sums of terms that nearly cancel, judged by the size of the terms."""
    value = value.detach().double()
    stats = [value.mean(), value.std(correction=0), value.sum(), value.abs().max()]
    allowed = tolerance * float(stats[3]) * np.array([1, 1, value.numel(), 1])
    assert np.all(np.abs(np.array([float(v) for v in stats]) - wanted) <= allowed)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_words(dataset):
    words, wanted = read_words("auto", CLASSES[dataset], "clims"), fixture("prompts")
    vocabulary = Vocabulary(openai_tokenizer(), 77)
    for kind, names in (("class", words.prompts), ("background", words.background)):
        prompts = [TEMPLATE.replace("{}", name) for name in names]
        assert prompts == wanted[f"{dataset}_{kind}_prompts"].tolist()
        np.testing.assert_array_equal(vocabulary(prompts), wanted[f"{dataset}_{kind}_tokens"])
    assert set(words.cooccurring) == {words.background}


def test_words_of_the_camera_ready_version():
    words, wanted = read_words("auto", VOC_CLASSES, "clims_camera_ready"), fixture("prompts")
    vocabulary = Vocabulary(openai_tokenizer(), 77)
    behind = [word for own in words.cooccurring for word in own]
    for kind, names in (("class", words.prompts), ("background", behind)):
        prompts = [f"a photo of {name}" for name in names]
        assert prompts == wanted[f"camera_ready_{kind}_prompts"].tolist()
        np.testing.assert_array_equal(vocabulary(prompts), wanted[f"camera_ready_{kind}_tokens"])
    assert {name: len(own) for name, own in zip(VOC_CLASSES, words.cooccurring, strict=True) if own} == {
        "boat": 5,
        "train": 4,
    }


def test_state_dict_has_the_published_names_and_shapes():
    for manifest, network in (
        ("resnet50_clims", classifier.CAMNetwork("resnet50", 20)),
        ("clims_camera_ready", clims.CameraReadyNetwork("resnet50", 20)),
    ):
        wanted = fixtures.table(f"clims/manifest-{manifest}.json")
        assert {name: list(value.shape) for name, value in network.state_dict().items()} == wanted


@pytest.fixture(scope="module")
def forward():
    """An improved network with the fixture's weights, and its stem frozen as its training freezes it."""
    network = filled(classifier.CAMNetwork("resnet50", 20), 1)
    for parameter in network.body.parameters_until(0):
        parameter.requires_grad_(False)
    return network


def test_forward_in_float32(forward):
    wanted, images = fixture("forward_clims"), batch(96, 128, (0, 1))
    with torch.no_grad():
        raw = forward.eval().maps(images)
        training = copy.deepcopy(forward).train().maps(images).sigmoid()
    close(raw.sigmoid(), wanted["sigmoid_eval"], 1e-5)
    np.testing.assert_allclose(training, wanted["sigmoid_train"], rtol=0, atol=5e-4)
    with torch.no_grad():
        pair = forward.maps(torch.stack([images[0], images[0].flip(2)]))
    close(pair, wanted["cam_separate"], 1e-5)
    close(pair[0].relu() + pair[1].relu().flip(2), wanted["cam"], 1e-5)


def test_training_forward_and_gradients(forward):
    # in float64: batch statistics make gradients of float32 differ by up to 3e-2
    wanted, images = fixture("forward_clims"), batch(96, 128, (0, 1)).double()
    network = forward.double().train()
    out = network.maps(images).sigmoid()
    close(out, wanted["f64/sigmoid_train"], 1e-6)
    upstream = torch.from_numpy(inputs.array("upstream", (2, 20, 6, 8), 0, -1, 1)).double()
    (out * upstream).sum().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    slice_ = wanted["f64/grad_classifier_weight_0_64"].reshape(20, 64)
    close(gradients["classifier.weight"][:, :64, 0, 0], slice_, 1e-6)
    compared = [key for key in wanted if key.startswith("f64/gradstats/")]
    assert len(compared) == 4
    for key in compared:
        close_stats(gradients[key.removeprefix("f64/gradstats/")], wanted[key], 1e-6)
    without = [gradients[f"resnet50.{name}"] is None for name in ("conv1.weight", "bn1.weight", "bn1.bias")]
    np.testing.assert_array_equal(without, wanted["no_grad_conv1_bn1"])
    state = network.state_dict()
    for key in wanted:
        if key.startswith("after_one_forward/"):
            close(state[key.removeprefix("after_one_forward/")][:64], wanted[key], 1e-5)
    assert state["resnet50.layer3.0.bn1.num_batches_tracked"] == wanted["num_batches_tracked"]


def test_camera_ready_network():
    wanted, network = fixture("forward_clims_camera_ready"), filled(clims.CameraReadyNetwork("resnet50", 20), 2)
    images = batch(96, 128, (0, 1), CLIP_MEAN, CLIP_STD)
    with torch.no_grad():
        close(network.eval().maps(images), wanted["raw_eval"][:, 1:], 1e-5)
        close(network.train().maps(images).sigmoid(), wanted["sigmoid_train"][:, 1:], 1e-3)
    close(network.cam_head[0].bn3.running_var[:64], wanted["after_one_forward/cam_head.0.bn3.running_var"], 1e-4)
    counts = wanted["param_group_tensor_counts"].tolist()
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == counts[0] == sum(counts)


def test_loss_primitives():
    wanted = fixture("loss_primitives")
    similarity = torch.from_numpy(wanted["sim"].ravel()).requires_grad_()
    # the log of 1 - 0.9999 keeps four digits of float32
    for name, loss, tolerance in (
        ("SimMax", clims.object_text_loss, 1e-5),
        ("SimMin", clims.background_text_loss, 1e-4),
    ):
        value = clip_regions.pair_mean(loss(similarity))
        (gradient,) = torch.autograd.grad(value, similarity)
        np.testing.assert_allclose(value.item(), wanted[name], rtol=tolerance)
        close(gradient, wanted[f"grad_{name}"].ravel(), tolerance)


@pytest.mark.parametrize(("dataset", "words", "threshold"), [("voc", 10, 0.26), ("coco", 88, 0.285)])
def test_suppression(dataset, words, threshold):
    wanted, key = fixture("loss_primitives"), f"CBS_{dataset}"
    looks = torch.from_numpy(inputs.array("imfeat", (12, 8), 11, -1, 1)).requires_grad_()
    texts = torch.from_numpy(inputs.array("txfeat", (words, 8), 11, -1, 1)).requires_grad_()
    similarity = F.normalize(looks, dim=1) @ F.normalize(texts, dim=1).T
    value = clims.suppression_loss(similarity, torch.ones(12, words, dtype=torch.bool), threshold).sum()
    np.testing.assert_allclose(value.item(), wanted[key], rtol=1e-5)
    np.testing.assert_allclose((similarity > threshold).double().mean(), wanted[f"{key}_active_fraction"])
    value.backward()
    close(looks.grad, wanted[f"grad_{key}_imfeat"], 1e-5)
    close(texts.grad, wanted[f"grad_{key}_txfeat"], 1e-5)


# C, seed, map and picture sides, seeds of the pictures, tolerance of the gradients
CASES = {
    "voc_vit": ("voc", 4, 10, 160, (0, 1, 2), "vit", 5e-5),
    "voc_rn": ("voc", 10, 8, 128, (3, 4), "rn", 5e-5),
    "coco_vit": ("coco", 4, 8, 128, (5, 6), "vit", 1e-4),
}


@pytest.mark.parametrize("regions", [128, 2])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case, regions):
    dataset, seed, cells, side, seeds, kind, tolerance = CASES[case]
    wanted, classes = fixture(f"losses_clims_{case}"), CLASSES[dataset]
    alpha, beta, gamma, delta = wanted["hyper"].tolist()
    weights = clims.CLIMSWeights(alpha, beta, gamma, delta)
    settings = clims.CLIMSSettings(weights=weights, threshold=float(wanted["cbs_threshold"]), regions=regions)
    if dataset == "voc":
        np.testing.assert_allclose((*wanted["hyper"], settings.threshold), (10, 24, 1, 0.2, 0.26), rtol=1e-6)
    teacher = learning(settings, classifier.CAMNetwork("resnet18", len(classes)), clip(kind, seed), classes)
    maps = torch.from_numpy(inputs.array("cam", (len(seeds), len(classes), cells, cells), seed, 0.02, 0.98))
    maps.requires_grad_()
    image, label = batch(side, side, seeds), torch.from_numpy(wanted["label"]).float()
    terms = teacher.losses(maps, image, label)
    assert tuple(terms) == NAMES
    gradients = []
    for name, key, weight in zip(NAMES, ("L_OTM", "L_BTM", "L_CBS", "L_REG"), (alpha, beta, gamma, delta), strict=True):
        np.testing.assert_allclose(terms[name].item() / weight, wanted[key], rtol=1e-5, atol=1e-6)
        gradients.append(torch.autograd.grad(terms[name], maps, retain_graph=True)[0])
        close(gradients[-1] / weight, wanted[f"grad_{key}"], tolerance)
    np.testing.assert_allclose(sum(terms.values()).item(), wanted["loss"], rtol=1e-5)
    close(sum(gradients), wanted["grad_loss"], tolerance)

    looks = similarities(teacher, maps, image, label, wanted)
    np.testing.assert_allclose(looks @ teacher.word_texts.T, wanted["sim_background_prompts"], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def similarities(
    teacher: clims.CLIMSObjective, maps: torch.Tensor, image: torch.Tensor, label: torch.Tensor, wanted: fixtures.Arrays
) -> torch.Tensor:
    """Check the cosines of the object's regions and of the rest with the class; return the unit vectors of the former."""
    pairs = clip_regions.pairs_of(label)
    pictures = F.interpolate(image, (teacher.size,) * 2, mode="bilinear", align_corners=True)
    features = F.normalize(teacher.encode(maps[pairs][:, None], pictures[pairs.rows]), dim=2)
    for position, name in enumerate(("sim_object_text", "sim_background_text")):
        own = (features[:, position] * teacher.class_texts[pairs.classes]).sum(1)
        np.testing.assert_allclose(own, wanted[name], rtol=1e-5, atol=1e-6)
    return features[:, 0]


def test_losses_of_the_camera_ready_version():
    wanted = fixture("losses_camera_ready")
    settings = clims.CLIMSSettings(
        variant="camera-ready",
        template="a photo of {}",
        colours="clip",
        threshold=None,
        emphasised=("sofa", "chair", "diningtable"),
        weights=clims.CLIMSWeights(1, 1, 1, 0),
    )
    teacher = learning(settings, classifier.CAMNetwork("resnet18", 20), clip("vit", 4), VOC_CLASSES)
    # the fixture's, since its random features give negative cosines
    teacher.object_span = (1e-3, torch.inf)
    own = torch.from_numpy(inputs.array("cam", (5, 1, 7, 7), 4, 0.02, 0.98)).requires_grad_()
    label = torch.from_numpy(wanted["label"]).float()
    np.testing.assert_array_equal(teacher.emphasis[label.argmax(1)], wanted["weights"])
    image = batch(112, 112, range(4, 9), CLIP_MEAN, CLIP_STD)
    maps = own * label[:, :, None, None]
    terms = teacher.losses(maps, image, label)
    similarities(teacher, maps, image, label, wanted)
    for name, key in zip(NAMES, ("L_OTM", "L_BTM", "L_CBS"), strict=False):
        np.testing.assert_allclose(terms[name].item(), wanted[key], rtol=1e-5)
        close(torch.autograd.grad(terms[name], own, retain_graph=True)[0], wanted[f"grad_{key}"], 1e-4)


def test_training():
    wanted = fixture("train_loop_f64")
    images, label = batch(96, 96, (9, 10)).double(), torch.from_numpy(wanted["label"]).double()
    network = filled(classifier.CAMNetwork("resnet50", 20), 91)
    for parameter in network.body.parameters_until(0):
        parameter.requires_grad_(False)
    teacher = (
        learning(clims.CLIMSSettings(), network.double(), clip("vit", 4, torch.float64), VOC_CLASSES).double().train()
    )
    training = Training(batch=2, epochs=4, lr=0.01)
    groups = teacher.param_groups(training)
    optimizer, base = make_optimizer(training, groups), [group["lr"] for group in groups]
    weights = (10, 24, 1, 0.2)
    for step in range(4):
        rates = [lr * poly_factor(training, step, 4) for lr in base]
        np.testing.assert_allclose(rates, wanted["lr_used"][step], rtol=1e-12)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        terms = teacher({"image": images, "label": label})
        for name, key, weight in zip(NAMES, ("L_OTM", "L_BTM", "L_CBS", "L_REG"), weights, strict=True):
            np.testing.assert_allclose(terms[name].item() / weight, wanted[key][step], rtol=1e-6, atol=1e-12)
        loss = sum(terms.values())
        np.testing.assert_allclose(loss.item(), wanted["loss"][step], rtol=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = network.state_dict()
    close(state["classifier.weight"][:, :32, 0, 0], wanted["final/classifier.weight_slice"].reshape(20, 32), 1e-6)
    for key in wanted:
        if key.startswith("final_stats/"):
            close_stats(state[key.removeprefix("final_stats/")], wanted[key], 1e-6)


def test_published_checkpoints_localize(tmp_path):
    network = filled(classifier.CAMNetwork("resnet50", 20), 1)
    aliases = {"stage1.0": "conv1", "stage1.1": "bn1", "stage1.4": "layer1"}
    aliases |= {f"stage{n}.0": f"layer{n}" for n in (2, 3, 4)}
    aliases |= {"backbone.0.0": "conv1", "backbone.0.1": "bn1", "backbone.0.4": "layer1"}
    aliases |= {f"backbone.{n - 1}.0": f"layer{n}" for n in (2, 3, 4)}
    own = network.state_dict()
    state = {}
    for name, shape in fixtures.table("clims/manifest-resnet50_cam-checkpoint.json").items():
        source = "classifier.weight" if name == "newly_added.0.weight" else name
        for alias, layer in aliases.items():
            if name.startswith(f"{alias}."):
                source = f"resnet50.{layer}{name.removeprefix(alias)}"
        assert list(own[source].shape) == shape
        state[name] = own[source]
    assert len(state) == 956
    torch.save(state, tmp_path / "res50_clims.pth")
    wanted, label = fixture("multiscale_cam"), np.zeros(20, bool)
    label[[2, 14]] = True
    for settings in (clims.CLIMSInference(), cam.CAMInference()):
        localizer = settings.localizer(nothing(VOC_CLASSES), tmp_path / "res50_clims.pth")
        found = localizer.cams(localizer.prepare(inputs.image(120, 160, 7)), (120, 160), label)
        np.testing.assert_allclose(found.maps_stride4, wanted["0/cam"], atol=5e-6)
    # the same file is what CLIMS starts from
    settings = clims.CLIMSSettings(init=str(tmp_path / "res50_clims.pth"))
    started, metadata = classifier.load_baseline(classifier.CAMNetwork, "clims", settings, nothing(VOC_CLASSES))
    for name, value in started.state_dict().items():
        assert torch.equal(value, own[name])
    assert metadata["backbone"] == "resnet50"


def test_a_published_camera_ready_checkpoint_localizes(tmp_path):
    network = filled(clims.CameraReadyNetwork("resnet50", 20), 2)
    torch.save(network.state_dict(), tmp_path / "cam.pth")
    localizer = clims.CLIMSInference(scales=(1.0,)).localizer(nothing(VOC_CLASSES), tmp_path / "cam.pth")
    image, label = inputs.image(96, 128, 0), np.arange(20) == 3
    found = localizer.cams(localizer.prepare(image), (96, 128), label)
    with torch.no_grad():
        images = batch(96, 128, (0,), CLIP_MEAN, CLIP_STD)
        raw = network.eval().maps(torch.cat([images, images.flip(3)])).relu()
    fused = F.interpolate((raw[:1] + raw[1:].flip(3))[:, 3:4], (24, 32), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(found.maps_stride4, (fused / (fused.max() + 1e-5)).numpy(), atol=1e-5)


def drawn_maps(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """The fixtures' maps, highest value 1 in each."""
    coarse = torch.from_numpy(inputs.array("cam", (1, count, 6, 8), seed, -1, 1))
    maps = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0].clamp_min(0)
    return (maps / (maps.amax((1, 2), keepdim=True) + 1e-5)).numpy()


SCORED = {
    "voc": (20, [(60, 80), (75, 50), (64, 64), (50, 90)], 40, 0.03),
    "coco": (80, [(60, 80), (75, 50), (64, 64)], 45, 0.0),
}


@pytest.mark.parametrize("dataset", SCORED)
def test_scores_of_maps(dataset):
    wanted, (n_classes, sizes, seed, ignored) = fixture("eval_cam"), SCORED[dataset]
    thresholds = wanted[f"{dataset}/thresholds"].tolist()
    sweep = ThresholdSweep(thresholds, n_classes)
    for j, (height, width) in enumerate(sizes):
        truth = inputs.mask(height, width, n_classes + 1, seed + j, ignored)
        keys = wanted[f"{dataset}/keys{j}"]
        maps = np.zeros((0, height, width), np.float32)
        if len(keys):
            inside = (truth == keys[:, None, None] + 1).astype(np.float32)
            maps = np.float32(0.5) * drawn_maps(len(keys), height, width, seed + j) + np.float32(0.5) * inside
        sweep.add(truth, maps, keys, f"image {j}")
    for i, counts in enumerate(sweep.matrices()):
        size = wanted[f"{dataset}/confusion"].shape[1]
        np.testing.assert_array_equal(counts[:size, :size], wanted[f"{dataset}/confusion"][i])
        found = scores(counts, "nan")
        iou = np.array([np.nan if value is None else value for value in found.iou[:size]])
        np.testing.assert_allclose(iou, wanted[f"{dataset}/iou"][i], atol=1e-9)
        np.testing.assert_allclose(found.miou, wanted[f"{dataset}/miou"][i], atol=1e-9)
        among = counts[0, 1:].sum() / counts[:, 1:].sum()
        np.testing.assert_allclose(among, wanted[f"{dataset}/among_predfg_bg"][i], atol=1e-9)
        if dataset == "voc":
            zero = scores(counts, "zero")
            np.testing.assert_allclose(100 * zero.miou, wanted["camera_ready/mIoU"][i], atol=1e-7)
            foreground = np.mean([value for value in zero.iou[1:] if value is not None])
            np.testing.assert_allclose(foreground, wanted["camera_ready/miou_foreground"][i], atol=1e-9)
            np.testing.assert_allclose(zero.clims_fp, wanted["camera_ready/fp_all"][i], atol=1e-9)
            np.testing.assert_allclose(zero.clims_fn, wanted["camera_ready/fn_all"][i], atol=1e-9)


@pytest.mark.parametrize(
    ("case", "height", "width", "seed"), [(0, 90, 120, 51), (1, 81, 60, 52), (2, 64, 96, 53), (3, 20, 30, 54)]
)
def test_confident_labels(case, height, width, seed):
    wanted = fixture("ir_label")
    keys, (threshold, lower) = wanted[f"{case}/keys"], wanted[f"{case}/thresholds"].tolist()
    image = inputs.image(height, width, seed)
    maps = drawn_maps(len(keys), height, width, seed) if len(keys) else np.zeros((0, height, width), np.float32)
    settings = crf.MaskSettings(by="crf", threshold=threshold, lower=lower)
    found = crf.pseudo_mask(image, keys, maps, settings)
    assert (found != wanted[f"{case}/ir_label"]).mean() <= 0.005
    if len(keys):
        for name, level in (("fg", threshold), ("bg", lower)):
            one = crf.MaskSettings(by="threshold", threshold=level)
            labels = np.concatenate([[0], keys + 1])
            np.testing.assert_array_equal(
                crf.pseudo_mask(image, keys, maps, one), labels[wanted[f"{case}/{name}_argmax"]]
            )
            alone = crf.pseudo_mask(image, keys, maps, crf.MaskSettings(by="crf", threshold=level))
            assert (alone != labels[wanted[f"{case}/{name}_crf"]]).mean() <= 0.005


@pytest.mark.parametrize(("case", "seed"), [(0, 65), (1, 66)])
def test_pseudo_masks(case, seed):
    wanted = fixture("sem_seg_label")
    height, width, background, beta, doublings = wanted[f"{case}/params"].tolist()
    size_hw = (int(height), int(width))
    h, w = -(-size_hw[0] // 4), -(-size_hw[1] // 4)
    keys = wanted[f"{case}/keys"]
    edge = torch.from_numpy(inputs.array("edge", (1, h, w), seed, 0, 0.9))[0]
    settings = irnet.IRNetWalk(beta=beta, doublings=int(doublings), pad_to=0)
    spread = irnet.walked(torch.from_numpy(drawn_maps(len(keys), h, w, seed)), edge, settings)
    np.testing.assert_allclose(spread, wanted[f"{case}/rw"], rtol=1e-3, atol=1e-7)
    full = irnet.enlarged(spread, 4, size_hw).numpy()
    found = crf.pseudo_mask(
        np.zeros((*size_hw, 3), np.uint8), keys, full, crf.MaskSettings(by="threshold", threshold=background)
    )
    assert (found != wanted[f"{case}/label"]).mean() <= 0.002


def test_the_defaults_are_the_scripts():
    refiner, settings = clims.METHOD.refiner, clims.METHOD.classifier
    published = presets.settings("paper", "clims", {})["refiner"]
    assert (refiner.labels.by, published["labels"], published["masks"]) == (
        "crf",
        {"threshold": 0.3, "lower": 0.1},
        {"threshold": 0.2},
    )
    assert refiner.walk == irnet.IRNetWalk(pad_to=0)
    baseline = clims.METHOD.needs["baseline"].settings
    assert (baseline.training.lr, baseline.training.epochs, baseline.frozen_layers) == (0.1, 5, "stem")
    training = settings.training
    assert (training.batch, training.epochs, training.lr, training.weight_decay) == (16, 15, 0.00025, 1e-4)
    assert training.momentum == 1e-4
    rates = fixture("poly_optimizer")["b/lr_used"]
    ours = [training.lr * poly_factor(training, step, 9915) for step in range(40)]
    np.testing.assert_allclose(ours, rates[:, 0], rtol=1e-12)
    np.testing.assert_allclose(settings.classifier_lr * np.array(ours), rates[:, 1], rtol=1e-12)
