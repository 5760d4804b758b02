"""What one or two processes run in test_two_processes: both networks trained, then all stages of the walks.

Apart from the tests, whose imports are slow since types are checked there.
"""

import pickle
import sys
from pathlib import Path

from tests.double import Double
from wsss import launch
from wsss.data.augment import AffinityAugment, PosteriorAugment
from wsss.refiners import affinitynet, irnet
from wsss.stages.thresholds import choose_thresholds
from wsss.stages.train import Training, train

BACKBONE = "test_resnet"  # timm's, of 0.4 million parameters


def work(folder: Path) -> None:
    images = pickle.loads((folder / "images").read_bytes())
    out, training = folder / str(launch.processes()), Training(batch=4, epochs=None, steps=3, lr=0.01, workers=0)
    file = str(folder / "backbone.safetensors")
    edges = irnet.IRNetTraining(BACKBONE, init=file, radius=4, augment=AffinityAugment(crop=48), training=training)
    # no pretrained weights: batch norms learn, with statistics over both processes
    features = affinitynet.AffinityNetTraining(BACKBONE, "none", 3, PosteriorAugment(crop=48), training)
    for name, settings in (("irnet", edges), ("affinitynet", features)):
        train(Double(settings), images, labels=folder / f"{name}-labels", out=out / name)
    cams, weights = folder / "cams", {name: folder / f"{name}.safetensors" for name in ("irnet", "affinitynet")}
    irnet.walk(irnet.IRNetWalk(pad_to=0), images, cams=cams, weights=weights["irnet"], out=out / "irnet-walk")
    irnet.centre(images, weights=weights["irnet"], crop=32, batch=3, out=out / "centred")
    chosen = choose_thresholds(images, cams=cams, out=out / "thresholds")
    alphas = affinitynet.AffinityNetLabels(low="otsu", high="otsu")
    affinitynet.label_sets(alphas, images, cams=cams, thresholds=chosen, out=out / "sets")
    walk = affinitynet.AffinityNetWalk()
    affinitynet.walk_to_masks(walk, images, cams=cams, weights=weights["affinitynet"], out=out / "masks")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
