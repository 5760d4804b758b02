"""Dense CRF (Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011).

With unary energies U and Gaussian kernels K_m of weight w_m, the mean field iterates

    Q <- softmax_l(-U),   Q <- softmax_l(-U + sum_m w_m K_m Q)

for a fixed number of iterations. K_m is filtered on the permutohedral lattice and normalised symmetrically; messages of a pixel to
itself are included. Q agrees with the published C++ library to 1e-4 (tests/parity/test_dense_crf.py).

Read `plain.py` first: about eighty lines of torch that compute everything, on any device. The other modules compute the same on CPUs, many
times as fast, in code compiled by numba:

    presets.py    published settings
    unary.py      energies from scores or labels
    features.py   features compared by the kernels: positions and colours
    keys.py       a number for each vertex of the lattice
    simplices.py  the vertices around a point, and their weights
    planes.py     energies and results in separate arrays
    lattice.py    all vertices of a picture, numbered and linked to their neighbours
    blur.py       splat, blur, slice
    filters.py    one kernel, K x
    field.py      the mean field
    lanes.py      vectors of float32 for compiled code
    threads.py    several threads on one picture
    inference.py  `dense_crf`
    ahead.py      compiling beside something else
"""

from wsss.ops.crf.ahead import compile_ahead
from wsss.ops.crf.features import wrapped_bgr
from wsss.ops.crf.field import is_compiled
from wsss.ops.crf.inference import crf_bytes, dense_crf
from wsss.ops.crf.presets import PRESETS, DenseCRF, Preset
from wsss.ops.crf.unary import unary_from_labels, unary_from_scores

__all__ = [
    "PRESETS",
    "DenseCRF",
    "Preset",
    "compile_ahead",
    "crf_bytes",
    "dense_crf",
    "is_compiled",
    "unary_from_labels",
    "unary_from_scores",
    "wrapped_bgr",
]
