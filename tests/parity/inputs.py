"""Inputs of the parity fixtures: weights, pictures, label maps and arrays that any machine draws alike.

Each value comes from a PCG64 stream that is keyed by (seed, CRC-32 of a name), so fixtures hold outputs only.
"""

from zlib import crc32

import numpy as np

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def stream(name: str, seed: int) -> np.random.Generator:
    """The random stream that belongs to a name and a seed."""
    return np.random.Generator(np.random.PCG64([seed, crc32(name.encode())]))


def tensor(name: str, shape: tuple[int, ...], seed: int = 0, gain: float = 1.0) -> np.ndarray:
    """A float32 value for the state-dict entry `name`; the kind of entry decides the distribution."""
    kind, draw = name.split(".")[-1], stream(name, seed)
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return np.asarray(draw.uniform(0.8, 1.2, shape), np.float32)
    if kind == "running_mean" or "bias" in kind or len(shape) < 2:
        return np.asarray(0.05 * draw.standard_normal(shape), np.float32)
    deviation = gain / np.sqrt(int(np.prod(shape[1:])))
    return np.asarray(deviation * draw.standard_normal(shape), np.float32)


def array(name: str, shape: tuple[int, ...], seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform float32 values in [low, high)."""
    return stream(name, seed).uniform(low, high, shape).astype(np.float32)


def _unit_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    return rows / max(height - 1, 1), columns / max(width - 1, 1)


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB uint8 picture (height, width, 3): waves of colour, four flat ellipses, noise of deviation 4."""
    draw = stream("image", seed)
    y, x = _unit_grid(height, width)
    level = draw.uniform(40, 215, 3)
    across = x[..., None] * draw.uniform(0.3, 1.2, 3)
    down = y[..., None] * draw.uniform(0.3, 1.2, 3)
    picture = level + 40 * np.sin(2 * np.pi * (across + down))
    for _ in range(4):
        centre, radius = draw.uniform(0.2, 0.8, 2), draw.uniform(0.08, 0.3, 2)
        inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
        picture[inside] = draw.uniform(0, 255, 3)
    return np.clip(picture + draw.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def mask(height: int, width: int, classes: int, seed: int = 0, ignore: float = 0.03) -> np.ndarray:
    """A uint8 label map (height, width): six ellipses of random labels below `classes`, a share `ignore` of 255."""
    draw = stream("mask", seed)
    y, x = _unit_grid(height, width)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(6):
        centre, radius = draw.uniform(0.1, 0.9, 2), draw.uniform(0.08, 0.35, 2)
        inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
        labels[inside] = draw.integers(0, classes)
    labels[draw.uniform(size=labels.shape) < ignore] = 255
    return labels


def blocky(name: str, n: int, height: int, width: int, seed: int, block: int) -> np.ndarray:
    """`array` values repeated in squares of `block` pixels, cropped to (n, height, width)."""
    coarse = array(name, (n, -(-height // block), -(-width // block)), seed)
    return coarse.repeat(block, 1).repeat(block, 2)[:, :height, :width]


def normalised(
    picture: np.ndarray, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """(v / 255 - mean) / std per channel in float64, returned as float32 (3, H, W)."""
    return np.ascontiguousarray(((picture / 255.0 - mean) / std).astype(np.float32).transpose(2, 0, 1))
