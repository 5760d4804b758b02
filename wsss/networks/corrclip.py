"""Dense features of CLIP by CorrCLIP (Zhang et al., ICCV 2025), in which patches attend only to patches of the same region.

Symbols: (H, W) the size of a window, f the grid of a network whose patches are compared, n its number of cells, d_i its unit features,
S_ij = <d_i, d_j>, t the grid of CLIP's patches, L the number of CLIP's blocks, counted from 0. A region map has numbers; its smallest one stands for
the pixels without a region, whatever it is.

1. Linking: of the regions on f, the means of d that have a similarity of at least 0.8 make their regions one.
2. Scope: patches attend to one another if they share a region, or if one of them has none and S_ij is above the mean of S; A = softmax(4 S).
3. The last block's values, averaged with A: of the tokens after block L - 2 (main), and of the mean of some blocks before (spatial).
4. Semantic: a copy of the class token for each region, which attends only to the class token and to the region's patches.
5. y = project(main) + project(spatial) + 0.5 project(semantic)
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from wsss.arrays import Float, Int
from wsss.networks.clip import CLIP
from wsss.ops.windows import average_over_windows, padding

# the published numbers; the similarity of a region with itself, 1, is among those of which the largest is taken
_LINKED, _SHARPNESS, _SEMANTIC = 0.2, 4.0, 0.5
# number of blocks whose outputs are averaged, by the number of all blocks
_SPATIAL = {12: 5, 24: 12, 32: 28}
# blocks that this needs: the last, the last but one, and one whose output is the spatial part
FEWEST_BLOCKS = 3
# what the sides of a window are padded to multiples of, and the region of the padding
_MULTIPLE, _PADDING = 56, 10_000


def over_windows(
    compute: Callable[[Float[Tensor, "1 3 hp wp"], Int[np.ndarray, "hp wp"]], Float[Tensor, "k hp wp"]],
    view: Float[Tensor, "1 3 h w"],
    regions: Int[np.ndarray, "h w"],
    window: int,
    step: int,
) -> Float[Tensor, "k h w"]:
    """Maps of a picture, averaged over windows that are padded to multiples of 56 with 0; the padding is a region of its own.

    Args:
        compute: the maps of one padded window, from the window and its region map.
        view: the picture, normalised.
        regions: region map of the picture.
        window: side of the windows.
        step: distance between windows.
    """
    outside = max(_PADDING, int(regions.max()) + 1)

    def padded(rows: slice, columns: slice) -> Float[Tensor, "k hw ww"]:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        (above, below), (left, right) = padding(height, _MULTIPLE), padding(width, _MULTIPLE)
        part = F.pad(view[..., rows, columns], (left, right, above, below))
        inside = np.pad(regions[rows, columns], ((above, below), (left, right)), constant_values=outside)
        return compute(part, inside)[:, above : above + height, left : left + width]

    return average_over_windows(padded, (view.shape[2], view.shape[3]), window, step)


def resized_nearest(regions: Int[np.ndarray, "h w"], size_hw: tuple[int, int]) -> Int[np.ndarray, "hs ws"]:
    """A region map at another size; row i takes row floor(i h / hs), as PyTorch's `nearest`."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size_hw, regions.shape, strict=True))
    return regions[rows[:, None], columns]


def ranks(regions: Int[np.ndarray, "*s"]) -> Int[np.ndarray, "*s"]:
    """The regions by the order of their numbers, from 0, which stands for the pixels without a region."""
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape)


def linked(regions: Int[np.ndarray, "h w"], features: Float[Tensor, "n d"]) -> Int[np.ndarray, "h w"]:
    """Join similar regions, also through chains of others; see step 1.

    Args:
        regions: on f.
        features: d, of the cells row by row.

    Returns:
        `ranks`.
    """
    cells = ranks(regions)
    count = int(cells.max())
    if count < 2:
        return cells
    of = torch.from_numpy(cells.ravel()).to(features.device)
    sums = features.new_zeros(count + 1, features.shape[1]).index_add_(0, of, features)
    means = F.normalize(sums[1:] / torch.bincount(of)[1:, None], dim=1)
    similarities = means @ means.T
    alike = (similarities >= similarities.max() - _LINKED).cpu().numpy()
    _, group = sparse.csgraph.connected_components(alike, directed=False)
    return ranks(np.concatenate([[0], group + 1])[cells])


def scope(regions: Int[np.ndarray, "h w"], features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """A, rows sum to 1; see step 2. A patch always attends to itself, which the published code leaves to S.

    Args:
        regions: `ranks` on f.
        features: d, of the cells row by row.
    """
    similarity = features @ features.T
    of = torch.from_numpy(regions.ravel()).to(features.device)
    free = of == 0
    shared = (of[:, None] == of) & ~free
    attended = shared | ((free[:, None] | free) & (similarity > similarity.mean()))
    attended.fill_diagonal_(True)
    return (_SHARPNESS * similarity).masked_fill_(~attended, -torch.inf).softmax(1)


def region_features(
    clip: CLIP,
    window: Float[Tensor, "1 3 h w"],
    regions: Int[np.ndarray, "gh gw"],
    attention: Float[Tensor, "n n"],
) -> Float[Tensor, "n joint"]:
    """y of the cells of f, not normalised; see steps 3 to 5.

    Args:
        clip: with at least `FEWEST_BLOCKS` blocks.
        window: normalised; the rest beyond whole patches at the right and at the bottom is left out.
        regions: `ranks` on f, after the linking.
        attention: A.
    """
    grid = window.shape[2] // clip.patch, window.shape[3] // clip.patch
    of_tokens = resized_nearest(regions, grid)
    numbers, of = np.unique(of_tokens, return_inverse=True)
    count, last = len(numbers), clip.n_blocks - 1
    x = clip.embed(window[..., : grid[0] * clip.patch, : grid[1] * clip.patch], clip.scaled_positions(grid))
    # the copies in front
    x = torch.cat([x[:, :1].expand(-1, count, -1), x], 1)
    mask = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
    mask[:count, count] = True
    mask[:count, count + 1 :] = torch.from_numpy(of.ravel() == np.arange(count)[:, None]).to(x.device)
    mask[count:, count:] = True
    bias = x.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    averaged = max(1, _SPATIAL.get(clip.n_blocks, clip.n_blocks - 4))
    spatial = torch.zeros((), device=x.device)
    for index in range(last):
        x, _ = clip.block(index, x, bias)
        if last - 1 - averaged <= index < last - 1:
            spatial = spatial + x[:, count + 1 :] / min(averaged, last - 1)
    copies, _ = clip.block(last, x, bias)
    values = torch.cat([x[:, count + 1 :], spatial])
    main, spatial = _through_values(clip, values, grid, regions.shape, attention)
    semantic = clip.project(copies[0, :count])[torch.from_numpy(of.reshape(grid)).to(x.device)]
    rows, columns = (
        torch.arange(new, device=x.device) * old // new for new, old in zip(regions.shape, grid, strict=True)
    )
    return clip.project(main) + clip.project(spatial) + _SEMANTIC * semantic[rows[:, None], columns].flatten(0, 1)


def _through_values(
    clip: CLIP,
    tokens: Float[Tensor, "b n width"],
    grid: tuple[int, int],
    cells_hw: tuple[int, ...],
    attention: Float[Tensor, "m m"],
) -> Float[Tensor, "b m width"]:
    """The last block's values of the patches, resized to f and averaged with A, through the output projection; no residual and no MLP."""
    block = clip.last_block()
    values = block.self_attn.v_proj(block.layer_norm1(tokens)).mT.unflatten(2, grid)
    values = F.interpolate(values, cells_hw, mode="bilinear", align_corners=False).flatten(2).mT
    return block.self_attn.out_proj(attention @ values)
