"""Peak memory of the stages by the number of pixels, of this version and of another one.

    python benchmarks/memory.py [--baseline PYTHON] [--stages predict ..] [--megapixels 0.2 2 6 24] [--memory 4GB]

Every number is from a process of its own, which handles one picture of 3:2 with noise like a photograph's, one class and one thread, after a small
picture: the highest resident memory since then, less what was resident before, as bytes a pixel and GiB. `localize` is a CAM of a small ResNet
(resnet10t) with random weights at the scales 1, 0.5, 1.5 and 2, mirrored; --backbone and --scales change that. `predict` makes the mask of a
DeepLab v2 on the same backbone with 21 labels, at the size of the picture and its published scales. This version keeps to the budget --memory, and
prints what it expected to take beside what it took. A process that fails, or that would need more than --most GiB of address space, counts as failed.
PYTHON is the interpreter of the other version:

    git worktree add ../baseline 8185a4c && cd ../baseline && python -m venv .venv && .venv/bin/pip install -e .
"""

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

if TYPE_CHECKING:  # processes import what they measure
    from wsss.data.images import Images

STAGES = ("crf", "refine", "threshold", "localize", "regions", "predict")
# with networks that see the whole picture, or bring it to their size
NETWORKS = ("icam", "affinitynet", "irnet", "bank", "votes", "corrclip", "weclip", "tagclip", "ask", "prompts")


def picture(height: int, width: int) -> np.ndarray:
    """Random shapes of all sizes, each as strong as it is large, and noise of two grey levels."""
    draw = np.random.default_rng(0)
    total, side = np.zeros((height, width, 3), np.float32), 3
    while side < min(height, width) // 2:
        coarse = draw.standard_normal((side, max(1, side * width // height), 3)).astype(np.float32) / side
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        side *= 2
    total -= total.min()
    total *= 255 / total.max()
    for top in range(0, height, 256):
        total[top : top + 256] += draw.normal(0, 2, total[top : top + 256].shape)
    return np.clip(total, 0, 255).astype(np.uint8)


def maps_of(image: np.ndarray) -> np.ndarray:
    return (image[None, ..., 0] / np.float32(255)).astype(np.float32)


def crf() -> Callable[[np.ndarray], object]:
    from wsss.ops.crf import PRESETS, dense_crf, unary_from_labels

    def work(image: np.ndarray) -> object:
        unaries = [unary_from_labels((image[..., 0] > at).astype(np.uint8), 2, 0.7) for at in (100, 128)]
        start()
        expect_crf(image.size // 3)
        try:
            return dense_crf(image, unaries, PRESETS["irn"], threads=1, overwrite=True)
        except TypeError:  # earlier versions
            return dense_crf(image, unaries, PRESETS["irn"], threads=1)

    return work


def expect_crf(pixels: int) -> None:
    try:
        from wsss.ops.crf import crf_bytes
    except ImportError:  # earlier versions
        return
    expect(lambda: crf_bytes(pixels, [2, 2]))


def refine(by: Literal["crf", "threshold"] = "crf") -> Callable[[np.ndarray], object]:
    from wsss.refiners.crf import CRFSettings, pseudo_mask

    settings = CRFSettings(by=by, threshold=0.5, lower=0.4)

    def work(image: np.ndarray) -> object:
        maps = maps_of(image)
        start()
        if hasattr(settings, "bytes_for"):
            expect(lambda: settings.bytes_for(image.size // 3, 1))
        return pseudo_mask(image, np.array([3]), maps, settings)

    return work


def localize() -> Callable[[np.ndarray], object]:
    import torch

    from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
    from wsss.networks.inference import for_inference

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = for_inference(CAMNetwork(os.environ["BACKBONE"], 20, 16).eval())
    scales = tuple(float(scale) for scale in os.environ["SCALES"].split())
    localizer = CAMLocalizer(network, MultiScale(scales=scales))
    label = np.arange(20) == 3

    def work(image: np.ndarray) -> object:
        start()
        if hasattr(localizer, "bytes_for"):
            expect(lambda: localizer.bytes_for(image.shape[:2], 1))
        found = localizer.cams(localizer.prepare(image), (image.shape[0], image.shape[1]), label)
        return found.maps

    return work


def regions() -> Callable[[np.ndarray], object]:
    from wsss.regions.tree import Tree, TreeSettings

    def work(image: np.ndarray) -> object:
        start()
        return Tree(TreeSettings()).prepare(image).scores

    return work


def predict() -> Callable[[np.ndarray], object]:
    import torch

    from wsss.data.voc import VOC_CLASSES
    from wsss.networks.deeplab import DeepLabLayers, create_deeplab
    from wsss.networks.inference import for_inference
    from wsss.stages.predict import PredictSettings, Segmenter, most_probable
    from wsss.weights import write_weights

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = DeepLabLayers(os.environ["BACKBONE"])
    metadata = {"kind": "deeplab", "network": dataclasses.asdict(layers), "classes": VOC_CLASSES, "colours": "imagenet"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segmenter.safetensors"
        write_weights(path, create_deeplab(21, layers).state_dict(), metadata)
        segmenter = Segmenter(path, PredictSettings(size="full"))
    for_inference(segmenter.trained.network)

    def work(image: np.ndarray) -> object:
        start()
        if not hasattr(segmenter, "blocks"):  # earlier versions
            return most_probable(segmenter.probabilities(segmenter.prepare(image)))
        expect(lambda: segmenter.bytes_for(image.shape[:2]))
        mask = np.empty(image.shape[:2], np.uint8)
        for rows, block in segmenter.blocks(segmenter.prepare(image)):
            mask[rows] = most_probable(block)
        return mask

    return work


def one_of(image: np.ndarray) -> "Images":
    """The picture as a data set, with one tag of 20."""
    from wsss.data.images import Images

    return Images.from_arrays([image], np.arange(20)[None] == 3, [f"class {number}" for number in range(20)])


def quiet() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


def icam() -> Callable[[np.ndarray], object]:
    from wsss.methods.icam import ICAMInference, ICAMLocalizer
    from wsss.networks.inference import for_inference
    from wsss.networks.seam import SEAMNetwork

    quiet()
    network = for_inference(SEAMNetwork(20, os.environ["BACKBONE"]).eval())
    settings = ICAMInference(scales=tuple(float(scale) for scale in os.environ["SCALES"].split()))
    return localized(ICAMLocalizer(network, settings, "seam"))


def localized(localizer: Any, regions: bool = False) -> Callable[[np.ndarray], object]:
    """The maps of one class."""
    from wsss.ops.regions import Regions

    def work(image: np.ndarray) -> object:
        # a quarter of the picture each
        top, left = (np.indices(image.shape[:2])[axis] < image.shape[axis] // 2 for axis in (0, 1))
        found = Regions.of_masks(np.stack([top & left, top & ~left, ~top & left, ~top & ~left]))
        start()
        expect(lambda: localizer.bytes_for(image.shape[:2], 1))
        prepared = localizer.prepare_within(image, found) if regions else localizer.prepare(image)
        return localizer.cams(prepared, (image.shape[0], image.shape[1]), np.arange(20) == 3).maps

    return work


def affinitynet() -> Callable[[np.ndarray], object]:
    from wsss.networks.affinitynet import AffinityNet
    from wsss.networks.inference import for_inference
    from wsss.refiners.affinitynet import AffinityNetWalk, walk_needs, walked_scores

    quiet()
    network, settings = for_inference(AffinityNet(os.environ["BACKBONE"]).eval()), AffinityNetWalk()

    def work(image: np.ndarray) -> object:
        maps = maps_of(image)
        start()
        expect(lambda: walk_needs(settings, one_of(image), network)(0))
        return walked_scores(network, image, maps, settings)

    return work


def irnet() -> Callable[[np.ndarray], object]:
    import torch

    from wsss.data.augment import normalise
    from wsss.networks.inference import for_inference
    from wsss.networks.irnet import IRNet, boundaries
    from wsss.refiners.irnet import IRNetWalk, enlarged, walk_needs, walked

    quiet()
    network, settings = for_inference(IRNet(os.environ["BACKBONE"]).eval()), IRNetWalk()

    def work(image: np.ndarray) -> object:
        cells = torch.from_numpy(maps_of(image)[:, :: network.stride, :: network.stride].copy())
        start()
        expect(lambda: walk_needs(settings, one_of(image), network)(0))
        edge = boundaries(network, torch.from_numpy(normalise(image)), settings.pad_to).edge
        return enlarged(walked(cells, edge, settings), network.stride, (image.shape[0], image.shape[1])).numpy()

    return work


def bank() -> Callable[[np.ndarray], object]:
    from wsss.networks.backbone import create_backbone
    from wsss.networks.features import BodyFeatures, DenseFeatures
    from wsss.ops.region_shapes import eroded_regions
    from wsss.ops.regions import Regions
    from wsss.segmenters.retrieval import described, pooling_needs

    quiet()
    features = DenseFeatures(BodyFeatures(create_backbone(os.environ["BACKBONE"], 16)))

    def work(image: np.ndarray) -> object:
        mask = (4 * (image[..., 0] > 128)).astype(np.uint8)
        start()
        expect(lambda: pooling_needs(one_of(image), features)(0))
        return described(features, image, Regions.of_masks(eroded_regions(mask, erosion=2).masks))

    return work


def votes() -> Callable[[np.ndarray], object]:
    """What changes the maps, after regions were compared, which takes what a bank takes."""
    from wsss.ops.region_labels import level_means
    from wsss.ops.regions import Regions
    from wsss.refiners.crf import MaskSettings
    from wsss.refiners.region_votes import CHANGING, against_background, at_cuts, spread, with_votes

    settings = MaskSettings(by="threshold", threshold=0.5)

    def work(image: np.ndarray) -> object:
        maps = maps_of(image)
        height, width = maps.shape[1:]
        squares = (np.arange(height)[:, None] * 8 // height) * 8 + np.arange(width) * 8 // width
        regions = Regions.of_masks(np.stack([squares == number for number in range(64)]))
        shares = np.full((64, 2), 0.5, np.float32)
        start()
        expect(lambda: image.size / 3 * sum(CHANGING))
        base = at_cuts(level_means(regions, maps), maps, settings)
        voted = spread(regions, shares, base)
        return against_background(with_votes(base, voted, np.array([0.3]), np.array([0.5]), "others"))

    return work


def clip() -> Any:
    """The layers of a ViT-B/16, a third of its blocks."""
    from transformers import CLIPConfig, CLIPModel

    from wsss.networks.clip import CLIP, Vocabulary
    from wsss.pretrained import openai_tokenizer

    quiet()
    vision = {"num_hidden_layers": 4, "image_size": 224, "patch_size": 16, "projection_dim": 512}
    model = CLIPModel(CLIPConfig(projection_dim=512, text_config={"num_hidden_layers": 1}, vision_config=vision))
    return CLIP(model, Vocabulary(openai_tokenizer(), 77)).requires_grad_(False).eval()


def unit_vectors(count: int) -> Any:
    import torch

    return torch.nn.functional.normalize(torch.randn(count, 512), dim=1)


def corrclip() -> Callable[[np.ndarray], object]:
    from wsss.methods.corrclip import CorrCLIPInference, CorrCLIPLocalizer
    from wsss.networks.features import DenseFeatures, PatchDescriptions, TransformerFeatures

    network, settings = clip(), CorrCLIPInference(step=336)
    dino = DenseFeatures(TransformerFeatures(network.model.vision_model, "clip"))
    of = np.array([0] * 20 + list(range(1, 21)))
    return localized(CorrCLIPLocalizer(network, PatchDescriptions(dino, "none"), unit_vectors(40), of, settings), True)


def weclip() -> Callable[[np.ndarray], object]:
    from wsss.methods.weclip_labels import LabelMaker, LabelSettings, TextVectors, label_rule
    from wsss.methods.weclip_maps import Choosing, WeCLIPLocalizer
    from wsss.networks.weclip import FrozenNetworks, WeCLIPNetwork

    frozen = FrozenNetworks(clip(), None)
    network = WeCLIPNetwork(21, 768, 3, None).eval()
    rule = label_rule(LabelSettings(), False, False, 4)
    maker = LabelMaker(frozen.clip, TextVectors(unit_vectors(20), unit_vectors(24)), rule)
    return localized(WeCLIPLocalizer(frozen, network, maker, Choosing(False, True)))


def tagclip() -> Callable[[np.ndarray], object]:
    from wsss.methods.tagclip import TagCLIPSettings, Tagger

    tagger = Tagger(clip(), unit_vectors(20), unit_vectors(24), TagCLIPSettings(ratio=0.2))

    def work(image: np.ndarray) -> object:
        start()
        expect(lambda: tagger.bytes_for(image.shape[:2]))
        return tagger.scores(tagger.prepare(image))

    return work


def ask() -> Callable[[np.ndarray], object]:
    """Sixteen questions about a class, to the layers of a BLIP of the usual width, two blocks each."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

    from wsss.methods.questions import BACKGROUND, FOREGROUND, QuestionSettings
    from wsss.networks.blip import BLIP

    quiet()
    settings = QuestionSettings(size=480)
    layers = {"num_hidden_layers": 2}
    config = BlipConfig(
        vision_config={**layers, "image_size": 480},
        text_config={**layers, "is_decoder": True, "encoder_hidden_size": 768},
    )
    with tempfile.TemporaryDirectory() as folder:
        words = " ".join((*FOREGROUND, *BACKGROUND)).lower().replace("?", " ?").replace("{}", "cat").split()
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words)]))
        blip = BLIP(BlipForQuestionAnswering(config).eval(), BertTokenizer(str(path)))

    def work(image: np.ndarray) -> object:
        start()
        expect(lambda: settings.bytes_for(image.shape[:2], blip))
        asked = [question.replace("{}", "cat") for question in (*FOREGROUND, *BACKGROUND)]
        return [len(blip.answers(settings.prepare(image), asked, settings.batch))]

    return work


def prompts() -> Callable[[np.ndarray], object]:
    """Ten objects that were found in a picture, and a network that takes nothing."""
    import torch

    from wsss.methods.prompts import PromptsLocalizer
    from wsss.prompting.finder import Found

    quiet()

    class Finder:
        network_bytes = 0.0

        def prepare(self, image: np.ndarray) -> tuple[int, ...]:
            return image.shape[:2]

        def found(self, prepared: tuple[int, int], words: list[int]) -> list[Found]:
            counts = [10, *[0] * (len(words) - 1)]
            logits = [torch.randn(1, count, 288, 288) for count in counts]
            enlarge = torch.nn.functional.interpolate
            return [
                Found(torch.rand(count), enlarge(one, prepared).sigmoid()[0])
                if count
                else Found(torch.zeros(0), torch.zeros(0, *prepared))
                for count, one in zip(counts, logits, strict=True)
            ]

    return localized(PromptsLocalizer(Finder(), True))


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def start() -> None:
    """Forget the highest resident memory so far."""
    global before, begun
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = status("VmRSS"), time.process_time()


def expect(estimate: Callable[[], float]) -> None:
    """Keep what a stage expects to take."""
    global expected
    expected = estimate()


before, begun, expected = 0, 0.0, 0.0


def measure(stage: str, megapixels: float, budget: str, most: float) -> None:
    """One number, printed as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (int(most * 2**30),) * 2)
    stages: dict[str, Callable[[], Callable[[np.ndarray], object]]] = {
        "crf": crf,
        "refine": refine,
        "threshold": partial(refine, "threshold"),
        "localize": localize,
        "regions": regions,
        "predict": predict,
        **{name: globals()[name] for name in NETWORKS},
    }
    work = stages[stage]()
    try:
        from wsss import memory

        memory.choose(budget)
    except ImportError:  # earlier versions
        pass
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    work(picture(120, 160))
    image = picture(height, round(1.5 * height))
    made = work(image)
    seconds, used = time.process_time() - begun, status("VmHWM") - before
    content = [np.asarray(one) for one in (made if isinstance(made, list) else [made])]
    digest = hashlib.sha256(b"".join(one.tobytes() for one in content)).hexdigest()[:8]
    found = {"bytes": used, "pixels": image.size // 3, "seconds": seconds, "digest": digest, "expected": expected}
    print(json.dumps(found))


def run(python: str, arguments: Sequence[str], environment: dict[str, str]) -> str:
    """The cell of one process."""
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"killed by signal {-done.returncode}"]
        return f"failed ({why[0][:60]})"
    found = json.loads(done.stdout.splitlines()[-1])
    each = found["bytes"] / found["pixels"]
    text = f"{each:5.0f} B, {found['bytes'] / 2**30:5.2f} GiB, {found['seconds']:6.1f} s, {found['digest']}"
    return text + (f", expected {found['expected'] / found['pixels']:5.0f} B" if found["expected"] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", help="Python of another version")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=(*STAGES, *NETWORKS))
    parser.add_argument("--megapixels", nargs="+", type=float, default=(0.2, 2, 6, 24))
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--most", type=float, default=16)
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--scales", nargs="+", default=("1", "0.5", "1.5", "2"))
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "MEGAPIXELS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], float(options.measure[1]), options.memory, options.most)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BACKBONE": options.backbone}
    environment["SCALES"] = " ".join(options.scales)
    pythons = ({"baseline": options.baseline} if options.baseline else {}) | {"this version": sys.executable}
    for stage in options.stages:
        for megapixels in options.megapixels:
            for name, python in pythons.items():
                arguments = [
                    "--measure",
                    stage,
                    str(megapixels),
                    "--memory",
                    options.memory,
                    "--most",
                    str(options.most),
                ]
                print(f"{stage:<9}{megapixels:5} MP {name:<13} {run(python, arguments, environment)}", flush=True)


if __name__ == "__main__":
    main()
