"""One training step of CLIMS: the losses of wsss against a literal implementation of the published steps, in the same run.

    python benchmarks/clims.py --words voc --threads 2 --repeats 3
    python benchmarks/clims.py --words coco --threads 2 --repeats 3

16 pictures of 512x512 with 25 pairs (VOC's words) or 46 (COCO's), ResNet-50, ViT-B/32, random weights, float32. The baseline does
what the published code does: CLIP is not frozen, so the gradients of its weights are computed; the foreground regions are
encoded for each of the two losses that use them; the texts of all pairs are encoded again for each loss, and the background
words in each step; the maps of all classes are resized. Both use the same network, whose forward and backward
pass is measured once, in parts of the batch, and added to both. Both give the same losses and gradients of the maps.

COCO's baseline takes about 10 GB of memory.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import classifier
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.images import Images
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import Words
from wsss.methods import clims
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.pretrained import openai_tokenizer

SIDE, CELLS = 512, 32
CLASSES = {"voc": VOC_CLASSES, "coco": tuple(COCO_CATEGORIES.values())}
SETTINGS = {
    "voc": clims.CLIMSSettings(),
    "coco": clims.CLIMSSettings(weights=clims.CLIMSWeights(2.0, 14.0, 1.25, 0.2), threshold=0.285),
}
PAIRS = {"voc": 25, "coco": 46}


def new_clip() -> open_clip.CLIP:
    """ViT-B/32 with random weights, and a direction that all features share: cosines lie around 0.26, as those of a trained one."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=12, width=768, patch_size=32, image_size=224)
    model = open_clip.CLIP(512, vision, open_clip.CLIPTextCfg(), quick_gelu=True).eval()
    shared = F.normalize(torch.randn(512), dim=0)
    for projection, norm in ((model.visual.proj, model.visual.ln_post), (model.text_projection, model.ln_final)):
        towards = 0.6 * projection.detach().norm() * shared[:, None]
        norm.bias.data += torch.linalg.lstsq(projection.detach().T, towards).solution[:, 0]
    return model


class AsPublished:
    """The loss part of step/train_clims.py with clip_loss.py, on layers of OpenAI's kind."""

    def __init__(self, model: open_clip.CLIP, settings: clims.CLIMSSettings, words: Words) -> None:
        self.model, self.settings, self.words = model, settings, words

    def texts(self, names: list[str]) -> Tensor:
        tokens = open_clip.tokenize([f"a photo of {name}." for name in names])
        return F.normalize(self.model.encode_text(tokens.to(self.model.logit_scale.device)), dim=1)

    def looks(self, regions: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(regions), dim=1)

    def losses(self, x: Tensor, image: Tensor, label: Tensor) -> Tensor:
        weights, prompts = self.settings.weights, self.words.prompts
        resized = F.interpolate(x, (224, 224), mode="bilinear", align_corners=True)
        pictures = F.interpolate(image, (224, 224), mode="bilinear", align_corners=True)
        objects, backgrounds, names = [], [], []
        for n in range(len(label)):
            for c in torch.nonzero(label[n]).flatten().tolist():
                objects.append(resized[n, c] * pictures[n])
                backgrounds.append((1 - resized[n, c]) * pictures[n])
                names.append(prompts[c])
        o, g = torch.stack(objects), torch.stack(backgrounds)
        a = (self.looks(o) * self.texts(names)).sum(1).clamp(1e-4, 0.9999)
        b = (self.looks(g) * self.texts(names)).sum(1).clamp(1e-4, 0.9999)
        r = self.looks(o) @ self.texts(list(self.words.background)).T
        suppressed = -torch.log(1 - r) * (r > (self.settings.threshold or 0)).float()
        return (
            weights.object_text * -torch.log(a).mean()
            + weights.background_text * -torch.log(1 - b).mean()
            + weights.suppression * suppressed.sum()
            + weights.area * x.mean()
        )


def batch(n_images: int, n_pairs: int, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, pictures, and tags, as many in each picture but for one more in the first ones."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(n_images, n_classes)
    for n in range(n_images):
        count = n_pairs // n_images + (n < n_pairs % n_images)
        label[n, torch.randperm(n_classes, generator=generator)[:count]] = 1
    maps = torch.rand(n_images, n_classes, CELLS, CELLS, generator=generator)
    return maps, torch.randn(n_images, 3, SIDE, SIDE, generator=generator), label


def network_pass(network: classifier.CAMNetwork, images: Tensor, part: int) -> None:
    """Forward and backward, `part` pictures at a time."""
    for views in images.split(part):
        network.maps(views).sigmoid().mean().backward()


def best(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[float, Any]:
    """Least seconds of several runs, and the result."""
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before = clock()
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - before)
    return min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", choices=list(CLASSES), default="voc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=16, help="with fewer pictures there are fewer pairs, but the same number of words"
    )
    parser.add_argument("--part", type=int, default=4, help="pictures per pass through the network")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for a machine with other load")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes, settings = CLASSES[options.words], SETTINGS[options.words]
    pairs = round(PAIRS[options.words] * options.images / 16)
    images = Images("none", (), (), classes, np.zeros((0, len(classes)), bool), ())
    words = settings.read_words(images)
    network = classifier.CAMNetwork("resnet50", len(classes)).to(device).train()
    for parameter in network.body.parameters_until(0):
        parameter.requires_grad_(False)
    maps, pictures, label = (value.to(device) for value in batch(options.images, pairs, len(classes)))

    def ours() -> tuple[Tensor, Tensor]:
        x = maps.clone().requires_grad_()
        loss = torch.stack(list(learning.losses(x, pictures, label).values())).sum()
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    def published() -> tuple[Tensor, Tensor]:
        x = maps.clone().requires_grad_()
        loss = baseline.losses(x, pictures, label)
        loss.backward()
        assert x.grad is not None
        return loss.detach(), x.grad

    print(
        f"{options.words}: {options.images} pictures, {pairs} pairs, {len(words.background)} words, {device}, "
        f"{options.threads} threads, best of {options.repeats}{', processor time' if options.cpu_time else ''}"
    )
    common, _ = best(lambda: network_pass(network, pictures, options.part), options.repeats, clock)
    baseline = AsPublished(new_clip(), settings, words)
    baseline.model.to(device)
    slow, theirs = best(published, options.repeats, clock)
    del baseline
    frozen = CLIP(from_openai(new_clip().state_dict(), "here"), Vocabulary(openai_tokenizer(), 77)).requires_grad_(
        False
    )
    learning = clims.CLIMSObjective(settings, network, {}, frozen, words, images).to(device)
    fast, mine = best(ours, options.repeats, clock)
    difference = float((mine[1] - theirs[1]).abs().max() / theirs[1].abs().max())
    print("network s  losses s: published  ours  ratio | step s: published   ours  ratio | loss difference, gradient's")
    print(
        f"{common:9.2f}  {slow:19.2f} {fast:5.2f} {slow / fast:6.2f} | {common + slow:17.2f} {common + fast:6.2f} "
        f"{(common + slow) / (common + fast):6.2f} | {float(mine[0] - theirs[0]):15.1e}, {difference:.1e}"
    )


if __name__ == "__main__":
    main()
