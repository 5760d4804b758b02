"""How well suspicious tags are found: tags are spoiled, a CAM classifier is trained on them, and several rankings are scored.

    python benchmarks/suspicious_tags.py DATA --epochs 15 --rates 0.05 0.1 --seeds 0 1

It prints, for each ranking, average precision / precision among the first 10 / precision among as many as there are wrong tags, and the share of the
tags' variance that each description explains. A rate of 1 shuffles the tags instead. Each training takes minutes on one core.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

import wsss
from wsss.classifier import CAMNetwork, at_scales
from wsss.data.augment import ClassifierAugment
from wsss.data.images import Images
from wsss.health.tags import skill
from wsss.methods.cam import CAMSettings
from wsss.ops.leave_one_out import leave_one_out
from wsss.stages.train import Training, make_optimizer, poly_factor


def spoiled(labels: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Tags of which a share is dropped, and to which as many wrong ones are added."""
    rng = np.random.default_rng([seed, int(rate * 1000)])
    if rate == 1:
        return labels[rng.permutation(len(labels))]
    given = labels.copy()
    present, absent = np.argwhere(labels), np.argwhere(~labels)
    count = round(rate * len(present))
    for cells in (present[rng.permutation(len(present))[:count]], absent[rng.permutation(len(absent))[:count]]):
        given[cells[:, 0], cells[:, 1]] ^= True
    return given


def trained(images: Images, epochs: int, seed: int) -> CAMNetwork:
    """The demo's classifier."""
    settings = CAMSettings(
        backbone="test_resnet",
        output_stride=8,
        init="none",
        classifier_lr=1.0,
        augment=ClassifierAugment(long_side=(88, 120), crop=104),
        training=Training(
            batch=16, epochs=epochs, optimizer="adamw", lr=0.003, weight_decay=0.05, warmup=50, seed=seed
        ),
    )
    torch.manual_seed(seed)
    objective = settings.trainable(images)
    optimizer = make_optimizer(settings.training, objective.param_groups(settings.training))
    base = [group["lr"] for group in optimizer.param_groups]
    updates, step = len(images) // 16, 0
    objective.train()
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        for start in range(0, 16 * updates, 16):
            examples = [
                objective.examples(int(i), np.random.default_rng([seed, epoch, int(i)]))
                for i in order[start : start + 16]
            ]
            batch = {key: torch.stack([one[key] for one in examples]) for key in examples[0]}
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * poly_factor(settings.training, step, updates * epochs)
            sum(objective(batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return objective.network.eval()


@torch.inference_mode()
def looked_at(network: CAMNetwork, images: Images) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Probabilities of the classes, and descriptions of the pictures by name, at 112 pixels."""
    probabilities: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {}
    for index in range(len(images)):
        image = images.read(index)
        maps = network.feature_maps(at_scales(image, (112 / max(image.shape[:2]),))[0])
        probabilities.append(network.classifier(maps[-1].mean((2, 3), keepdim=True))[0, :, 0, 0].sigmoid().numpy())
        for name, features in (("last stage but one", maps[-2]), ("last stage", maps[-1])):
            found.setdefault(f"{name}, maximum", []).append(features.amax((2, 3))[0].numpy())
            found.setdefault(f"{name}, mean", []).append(features.mean((2, 3))[0].numpy())
    described = {name: np.array(rows) for name, rows in found.items()}
    both = ("last stage but one, maximum", "last stage, maximum")
    return np.array(probabilities), described | {"both, maximum": np.hstack([described[name] for name in both])}


def by_neighbours(x: np.ndarray, labels: np.ndarray, k: int = 10) -> np.ndarray:
    """The share of each tag among the k most similar pictures."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -2)
    nearest = np.argsort(-similarity, 1, kind="stable")[:, :k]
    return (labels[nearest].sum(1) + labels.mean(0)) / (k + 1)


def above_class_means(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confidence in the opposite of a tag, less the mean confidence in that opposite where it is the tag (Northcutt et al., JAIR 2021)."""
    found = np.empty(labels.shape)
    for c in range(labels.shape[1]):
        p, y = predicted[:, c], labels[:, c]
        found[:, c] = np.where(y, (1 - p) - (1 - p[~y]).mean(), p - p[y].mean())
    return found


def quality(wrong: np.ndarray, suspicion: np.ndarray) -> np.ndarray:
    """Average precision, and precision among the first 10 and among as many as are wrong."""
    hits = wrong.ravel()[np.argsort(-suspicion.ravel(), kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return np.array([precision[hits].mean(), precision[9], precision[hits.sum() - 1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    images = wsss.open_dataset(options.data).split("train")
    for rate in options.rates:
        scores: dict[str, list[np.ndarray]] = {}
        for seed in options.seeds:
            given = spoiled(images.labels, rate, seed)
            pictures = dataclasses.replace(images, labels=given)
            own, described = looked_at(trained(pictures, options.epochs, seed), pictures)
            wrong = given != images.labels
            rankings = {"own loss": np.abs(given - own), "own, class means": above_class_means(own, given)}
            for name, x in described.items():
                predicted = leave_one_out(x, given)
                rankings[f"leave-one-out, {name}"] = np.abs(given - predicted)
                print(f"rate {rate}, seed {seed}: {name} explains {np.nanmean(skill(given, predicted)):.3f}")
                if name == "last stage but one, maximum":
                    rankings["leave-one-out, class means"] = above_class_means(predicted, given)
                    rankings["10 neighbours"] = np.abs(given - by_neighbours(x, given))
            for name, suspicion in rankings.items():
                scores.setdefault(name, []).append(quality(wrong, suspicion))
        for name, found in scores.items():
            print(f"rate {rate}: {name:46s}", " / ".join(f"{value:.2f}" for value in np.mean(found, 0)))


if __name__ == "__main__":
    main()
