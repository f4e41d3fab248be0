"""DiffFit fine-tuning (arXiv 2304.06648) of a DiT, as MinimaxDiffusion saves it: factors beside products of a block.

A factor multiplies the output of a linear layer, bias included, or of a whole branch before its gate; multiplied into
the layer that ends there, the network is a plain DiT that predicts the same.
"""

import re
from pathlib import Path

from torch import Tensor

from ld3m.errors import CheckpointError

_FACTOR = re.compile(r"(blocks\.\d+)\.(gamma1|gamma2|attn\.gamma1|attn\.gamma2)")
_LAYERS = {
    "gamma1": ("attn.proj",),
    "gamma2": ("mlp.fc2",),
    "attn.gamma1": ("attn.qkv",),
    "attn.gamma2": ("attn.proj",),
}


def with_factors_multiplied(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return an official DiT's weights with DiffFit's factors multiplied in; a state without any is returned itself."""
    factors = {key: value for key, value in state.items() if _FACTOR.fullmatch(key)}
    if not factors:
        return state
    merged = {key: value for key, value in state.items() if key not in factors}
    for key, factor in factors.items():
        found = _FACTOR.fullmatch(key)
        assert found is not None
        for layer in _LAYERS[found[2]]:
            weight, bias = f"{found[1]}.{layer}.weight", f"{found[1]}.{layer}.bias"
            if weight not in merged or merged[weight].shape[:1] != factor.shape:
                raise CheckpointError(
                    f"{path} has a factor {key} {tuple(factor.shape)} for no layer {layer} of its size"
                )
            scale = factor.double()
            merged[weight] = (merged[weight].double() * scale[:, None]).to(merged[weight].dtype)
            if bias in merged:
                merged[bias] = (merged[bias].double() * scale).to(merged[bias].dtype)
    return merged
