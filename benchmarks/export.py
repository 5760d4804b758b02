"""Time of exported segmenters: torch against onnxruntime, with 32-bit and with 8-bit numbers, on the same pictures.

    python benchmarks/export.py RUN [--threads N] [--pictures N]

RUN is a finished `wsss run` whose dataset is still there. All models get the pictures of its validation split in turn, with the same number
of threads; a time is the fastest of three passes, in milliseconds per picture.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from wsss.deploy import onnx
from wsss.deploy.export import FLOAT, ModelExport, export_model
from wsss.deploy.network import DeployedSegmenter
from wsss.stages.check import reopen
from wsss.stages.predict import PredictSettings, Segmenter

PASSES = 3


def session(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda picture: made.run(["labels"], {"picture": picture[None]})[0][0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--pictures", type=int, default=30)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    data = reopen(options.run)
    assert data is not None
    images = data.split(data.val or data.train)
    pictures = [images.read(index).copy() for index in range(min(len(images), options.pictures))]
    segmenter = Segmenter(options.run / "segmenter", PredictSettings(), torch.device("cpu"))
    network = DeployedSegmenter(segmenter.trained, long_sides=segmenter.long_sides)

    def in_torch(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(picture)[None]).labels[0].numpy()

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        export_model(options.run, out, "onnx", ModelExport(int8=True, max_loss=100))
        models = {
            "torch": in_torch,
            "onnxruntime": session(out / FLOAT, options.threads),
            "onnxruntime, 8 bits": session(out / onnx.MODEL, options.threads),
        }
        times = {name: [] for name in models}  # type: dict[str, list[float]]
        for _ in range(PASSES):
            for name, model in models.items():
                start = time.perf_counter()
                for picture in pictures:
                    model(picture)
                times[name].append(1000 * (time.perf_counter() - start) / len(pictures))
        sizes = [
            f"{min(sides)} to {max(sides)}" for sides in zip(*(picture.shape[:2] for picture in pictures), strict=True)
        ]
        print(f"{len(pictures)} pictures of {sizes[0]} x {sizes[1]} pixels, {options.threads} threads")
        for name, values in times.items():
            print(f"{name:20} {min(values):7.1f} ms per picture, {min(times['torch']) / min(values):4.2f} times torch")


if __name__ == "__main__":
    main()
