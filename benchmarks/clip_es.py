"""CLIP-ES per picture: the pipeline of wsss against the published steps, label by label, in the same run.

    python benchmarks/clip_es.py --threads 1 --pictures 8 --repeats 2 [--crf]

CPU seconds of a picture, alternating between both. ViT-B/16, random weights, drawn pictures of 500x375; with --crf also the dense CRF
after it, by pydensecrf2 (`pip install .[oracle]`) and by wsss. The baseline does what the published code does:
every block returns and stores its attention averaged over the heads; for each label the last block runs again, with
gradients of all of its weights; for each label the affinity is normalised and squared again. Both give the same maps up to rounding.
With --crf, the difference is that of the probabilities after it: ten iterations magnify the rounding of the maps a hundredfold. So another line
gives that of both CRFs on the same maps, and it is an error if that is not rounding.
The last column of the table is the highest possible ratio: the baseline against only the matrix products of the linear layers in
one forward pass, which every exact implementation has to compute. The lines before the table say how fast these run, and what attention takes.
"""

import argparse
import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from wsss.methods import clip_es
from wsss.networks.clip import CLIP, Vocabulary, attend
from wsss.ops.boxes import box_mask
from wsss.ops.crf import PRESETS, dense_crf, wrapped_bgr
from wsss.pretrained import openai_tokenizer
from wsss.refiners.crf import scores_unary

BACKGROUNDS, CLASSES = 25, 20
# as in tests/parity/test_dense_crf.py
SAME_CRF = 2e-4
INPUTS = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "parity" / "inputs.py"))


def new_clip(width: int = 768, blocks: int = 12) -> CLIP:
    """ViT-B/16, or a smaller one, with random weights; large ones for queries and keys, since even attention has no maps to compare."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 64,
    }
    config = CLIPConfig(
        projection_dim=512,
        text_config={"num_hidden_layers": 1},  # texts are drawn
        vision_config={**vision, "image_size": 224, "patch_size": 16, "projection_dim": 512},
    )
    model = CLIPModel(config).eval()
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.q_proj.weight.data *= 8
        layer.self_attn.k_proj.weight.data *= 8
    return CLIP(model, Vocabulary(openai_tokenizer(), 77))


class LabelByLabel:
    """The published steps as they are written down in the paper's code, on the same layers."""

    def __init__(self, clip: CLIP, classes: Tensor, backgrounds: Tensor) -> None:
        self.clip, self.classes, self.backgrounds = clip, classes, backgrounds
        self.layers = clip.model.vision_model.encoder.layers

    def attention(self, index: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Output and head-averaged matrix, as torch's multi-head attention with its weights asked for gives them."""
        own = self.layers[index].self_attn
        weight = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
        bias = torch.cat([own.q_proj.bias, own.k_proj.bias, own.v_proj.bias])
        x = y.transpose(0, 1)
        out, mean = F.multi_head_attention_forward(
            x, x, x, x.shape[2], own.num_heads, weight, bias, None, None, False, 0.0,
            own.out_proj.weight, own.out_proj.bias, need_weights=True,
        )  # fmt: skip
        assert mean is not None
        return out.transpose(0, 1), mean

    def block(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layers[index]
        y = layer.layer_norm1(x)
        out, mean = self.attention(index, y)
        x = x + out
        z = layer.mlp.fc1(layer.layer_norm2(x))
        return x + layer.mlp.fc2(z * torch.sigmoid(1.702 * z)), mean, y

    def maps(self, image: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Maps at the picture's size."""
        view = torch.from_numpy(clip_es.patched(image, 16))[None]
        grid = view.shape[2] // 16, view.shape[3] // 16
        matrices = []
        with torch.no_grad():
            x = self.clip.embed(view, self.clip.positions(grid))
            for index in range(11):
                x, mean, _ = self.block(index, x)
                matrices.append(mean)
        found = []
        texts = torch.cat([self.classes[torch.from_numpy(present)], self.backgrounds])
        for position in range(len(present)):
            tokens = x.detach().requires_grad_()
            out, mean, y = self.block(11, tokens)
            y.retain_grad()
            if position == 0:
                matrices.append(mean.detach())
            f = F.normalize(
                self.clip.model.visual_projection(self.clip.model.vision_model.post_layernorm(out)[0, 1:].mean(0)),
                dim=0,
            )
            p = (self.clip.temperature * texts @ f).softmax(0)
            self.clip.zero_grad()
            p[position].backward()
            assert y.grad is not None
            weight = y.grad[0, 1:].mean(0)
            first = (y.detach()[0, 1:] * weight).sum(1).relu().reshape(grid).numpy()
            first = clip_es.normalised(clip_es.normalised(first))
            affinity = clip_es.affinity(torch.stack([m[0, 1:, 1:] for m in matrices])[-8:].mean(0))
            squared = affinity @ affinity
            boxes = torch.from_numpy(box_mask(first, 0.4)).reshape(1, -1)
            refined = (squared * boxes) @ torch.from_numpy(first).reshape(-1, 1)
            found.append(cv2.resize(clip_es.normalised(refined.reshape(grid).numpy()), image.shape[1::-1]))
        return np.stack(found)


def pydensecrf2(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    import pydensecrf.densecrf as reference

    energy, crf = scores_unary(maps), PRESETS["deeplab"]
    field = reference.DenseCRF2D(image.shape[1], image.shape[0], len(energy))
    field.setUnaryEnergy(energy.reshape(len(energy), -1))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
    field.addPairwiseBilateral(
        sxy=crf.bilateral_sxy,
        srgb=crf.bilateral_srgb,
        rgbim=np.ascontiguousarray(wrapped_bgr(image)),
        compat=crf.bilateral_weight,
    )
    return np.array(field.inference(crf.iterations)).reshape(energy.shape)


def products(clip: CLIP, n_tokens: int) -> np.ndarray:
    """The linear layers of all blocks on that many tokens, and nothing else."""
    x = torch.randn(1, n_tokens, 768)
    with torch.no_grad():
        for layer in clip.model.vision_model.encoder.layers:
            own = layer.self_attn
            for linear in (own.q_proj, own.k_proj, own.v_proj, own.out_proj):
                linear(x)
            layer.mlp.fc2(layer.mlp.fc1(x))
    return x.numpy()


def seconds(ways: Sequence[Callable[[int], np.ndarray]], pictures: int, repeats: int) -> tuple[list[float], float]:
    """Mean over the pictures of the least CPU seconds of each way, and the largest difference of the results of the first two."""
    total, difference = [0.0] * len(ways), 0.0
    for picture in range(pictures):
        least = [np.inf] * len(ways)
        results: list[np.ndarray] = []
        for _ in range(repeats):
            results.clear()
            for index, run in enumerate(ways):
                before = time.process_time()
                results.append(run(picture))
                least[index] = min(least[index], time.process_time() - before)
        total = [sum(pair) for pair in zip(total, least, strict=True)]
        difference = max(difference, float(np.abs(results[0] - results[1]).max()))
    return [one / pictures for one in total], difference


def least_seconds(run: Callable[[], object], repeats: int = 9) -> float:
    """The least CPU seconds of a call."""
    found = []
    for _ in range(repeats):
        before = time.process_time()
        run()
        found.append(time.process_time() - before)
    return min(found)


def parts(clip: CLIP, baseline: LabelByLabel, n_tokens: int) -> None:
    """Print how fast the linear layers run beside a large product, and what the attention of one block takes, without its projections."""
    y, square = torch.randn(1, n_tokens, 768), torch.randn(2048, 2048)
    # four projections of 768x768 and two layers of the MLP of 768x3072, in 12 blocks
    linear = 2e-9 * n_tokens * 12 * (4 * 768**2 + 2 * 768 * 3072) / least_seconds(lambda: products(clip, n_tokens))
    large = 2e-9 * 2048**3 / least_seconds(lambda: square @ square)
    print(f"linear layers {linear:.0f} GFLOP/s, a product of 2048x2048 {large:.0f}")
    own = clip.last_block().self_attn
    with torch.no_grad():
        projections = least_seconds(lambda: [one(y) for one in (own.q_proj, own.k_proj, own.v_proj, own.out_proj)])
        ways = {
            "all heads at once": lambda: baseline.attention(11, y),
            "head by head": lambda: attend(own, y, average=True),
            "fused, without its mean": lambda: attend(own, y),
        }
        times = {name: least_seconds(run) - projections for name, run in ways.items()}
    print("attention of a block, ms: " + ", ".join(f"{name} {1000 * one:.0f}" for name, one in times.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--crf", action="store_true", help="include the dense CRF after the maps")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = [INPUTS["image"](*options.size, index) for index in range(options.pictures)]
    generator = torch.Generator().manual_seed(1)
    classes, backgrounds = (
        F.normalize(torch.randn(n, 512, generator=generator), dim=1) for n in (CLASSES, BACKGROUNDS)
    )
    clip = new_clip()
    baseline = LabelByLabel(clip, classes, backgrounds)
    frozen = new_clip().requires_grad_(False)
    ours = clip_es.CLIPESLocalizer(frozen, classes, backgrounds, clip_es.CLIPESInference(), clip_es.BOX_THRESHOLD)
    print(
        f"{options.size[0]}x{options.size[1]}, {options.threads} threads, {options.pictures} pictures, best of {options.repeats}"
    )
    rows, columns = clip_es.patched(images[0], 16).shape[1:]
    tokens = 1 + rows // 16 * (columns // 16)
    parts(frozen, baseline, tokens)
    print("labels  published s  ours s  ratio  |difference|  bound")
    for count in (1, 2, 4):
        label = np.zeros(CLASSES, bool)
        label[:count] = True

        def published(index: int, label: np.ndarray = label) -> np.ndarray:
            maps = baseline.maps(images[index], np.flatnonzero(label))
            return pydensecrf2(images[index], maps) if options.crf else maps

        def here(index: int, label: np.ndarray = label) -> np.ndarray:
            image = images[index]
            maps = ours.cams(ours.prepare(image), image.shape[:2], label).maps
            if not options.crf:
                return maps
            return dense_crf(image, scores_unary(maps), PRESETS["deeplab"], threads=options.threads)

        ways = (published, here, lambda _: products(frozen, tokens))
        (slow, fast, least), difference = seconds(ways, options.pictures, options.repeats)
        print(
            f"{count:6d}  {slow:11.2f}  {fast:6.2f}  {slow / fast:5.2f}  {difference:12.1e}  {slow / least:5.2f}",
            flush=True,
        )
        if options.crf:
            maps = ours.cams(ours.prepare(images[0]), images[0].shape[:2], label).maps
            own = dense_crf(images[0], scores_unary(maps), PRESETS["deeplab"], threads=options.threads)
            apart = np.abs(own - pydensecrf2(images[0], maps)).max()
            print(f"        both CRFs on the same maps differ by at most {apart:.1e}", flush=True)
            if apart > SAME_CRF:
                raise SystemExit(f"the CRFs differ by more than {SAME_CRF:.0e}")


if __name__ == "__main__":
    main()
