"""Whole images, four in one: the images of the lowest EL2N score, tiled without a crop (PCA, arXiv 2502.06434).

A training on them sees one tile at a time, enlarged, so that a stored image counts for several.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ld3m.config import SelectConfig
from ld3m.selection.base import Candidates, Choice, lowest, tile_edges


def choose(
    candidates: Candidates, measured: Mapping[str, Tensor], count: int, config: SelectConfig, generator: torch.Generator
) -> Choice:
    """Tile the easiest images, easiest first."""
    per_side = config.tiles or 2
    flat = lowest(candidates, measured, count * per_side**2, config, generator).positions
    return Choice(flat.view(count, per_side**2))


def one_tile(images: Tensor, tiles: int, generator: torch.Generator) -> Tensor:
    """Cut one tile, drawn anew, out of each image (B, 3, H, H), and enlarge it to the whole."""
    side, edges = images.shape[-1], tile_edges(images.shape[-1], tiles)
    drawn, shown = torch.randint(tiles**2, (len(images),), generator=generator), torch.empty_like(images)
    for k in drawn.unique().tolist():
        row, column, at = k // tiles, k % tiles, (drawn == k).to(images.device)
        tile = images[at][..., edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
        shown[at] = F.interpolate(tile, (side, side), mode="bilinear", align_corners=False)
    return shown
