"""Time of word labels and of an update of VWL-M's memory bank compared with the published forms, which use one-hot vectors.

    python benchmarks/vwl.py [--repeats 5] [--device cpu]

One thread; medians over the repeats. N pictures of h x w cells are assigned to K words at random; features have 2048 channels. The published
forms are `one_hot` and a maximum over the cells, and the matrix product of one-hot vectors with the features as rows (making the rows
is included); wsss scatters and adds by index. The last column is the largest difference, relative to the largest value. Neither
includes the assignment, which both share.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.methods.vwl import word_labels, word_sums

# N, h, w, K: the published batch, more words, the share of one of eight GPUs
CASES = ((16, 32, 32, 256), (16, 32, 32, 1024), (2, 32, 32, 256))


def published_labels(assigned: Tensor, n_words: int) -> Tensor:
    return F.one_hot(assigned, n_words).flatten(1, 2).amax(1).float()


def published_sums(x: Tensor, assigned: Tensor, n_words: int) -> Tensor:
    one_hot = F.one_hot(assigned, n_words).flatten(0, 2).to(x)
    return one_hot.T @ x.permute(0, 2, 3, 1).flatten(0, 2)


def our_sums(x: Tensor, assigned: Tensor, n_words: int) -> Tensor:
    return word_sums(x, assigned, n_words)[0]


def seconds(run: Callable[[], Tensor], repeats: int, device: torch.device) -> tuple[float, Tensor]:
    result, taken = run(), []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{'':36}{'published ms':>14}{'ours ms':>10}{'ratio':>8}{'difference':>12}")
    for pictures, height, width, n_words in CASES:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(pictures, 2048, height, width, generator=generator).to(options.device)
        assigned = torch.randint(n_words, (pictures, height, width), generator=generator).to(options.device)
        labels = (partial(published_labels, assigned, n_words), partial(word_labels, assigned, n_words))
        bank = (partial(published_sums, x, assigned, n_words), partial(our_sums, x, assigned, n_words))
        for what, (published, ours) in (("labels", labels), ("bank", bank)):
            theirs, wanted = seconds(published, options.repeats, options.device)
            own, result = seconds(ours, options.repeats, options.device)
            name = f"{what}, {pictures} x {height} x {width}, {n_words} words"
            error = float((result - wanted).abs().max() / wanted.abs().max())
            print(f"{name:36}{1e3 * theirs:14.2f}{1e3 * own:10.2f}{theirs / own:8.1f}{error:12.1e}", flush=True)


if __name__ == "__main__":
    main()
