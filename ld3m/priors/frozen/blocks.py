"""Blocks of a frozen U-Net or decoder, run from the weights in diffusers' modules: gradients in their inputs alone.

Eager autograd keeps for a GroupNorm, SiLU and convolution in a row the inputs of all three. With frozen weights the
convolution needs none of them, and SiLU's is recomputed from the norm's input and statistics: one tensor of three.
"""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.ops.geglu import geglu, geglu_reference
from ld3m.ops.group_norm_silu import group_norm_silu
from ld3m.priors.architecture import DiffusersModule
from ld3m.priors.frozen.attention import attention
from ld3m.priors.frozen.conv2d import FrozenConv2d
from ld3m.priors.frozen.execution import ExecutionConfig

_MOST_SHAPES = 64  # a U-Net has about fifteen, and each gets code of its own


def _compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    call = torch.compile(block, dynamic=False)

    @wraps(block)
    def run(*arguments: object) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):  # an option of torch.compile from 2.12 on
            return call(*arguments)

    return run


class Blocks:
    """The blocks, run as the switches say. Modules come in as the holders of their weights."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self.keep_less, self.fused_norm = execution.keep_less, execution.fused_norm
        self.format = torch.channels_last if execution.channels_last else torch.contiguous_format
        self.attend = attention(execution.attention)
        if execution.compile:
            self.resnet, self.transformer = _compiled(self.resnet), _compiled(self.transformer)

    def conv(self, layer: nn.Conv2d, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve, with another bias than the layer's own where one is given."""
        bias = layer.bias if bias is None else bias
        convolve = FrozenConv2d.apply if self.keep_less else F.conv2d
        return convolve(x, layer.weight, bias, layer.stride, layer.padding)

    def norm(self, norm: nn.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
        if self.fused_norm:
            return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu)
        return F.silu(norm(x)) if silu else norm(x)

    def norm_silu(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return self.norm(norm, x, silu=True)

    def resnet(self, block: DiffusersModule, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Run a residual block (B, C, h, w) -> (B, C', h, w).

        Args:
            shift: (C',), bias of the first convolution and the timestep's projection in one; the bias when None.
        """
        h = self.conv(block.conv1, self.norm_silu(block.norm1, x), shift)
        h = self.conv(block.conv2, self.norm_silu(block.norm2, h))
        return h + (x if block.conv_shortcut is None else self.conv(block.conv_shortcut, x))

    def self_attention(self, block: DiffusersModule, x: Tensor) -> Tensor:
        """Run an attention between positions, with its own norm and residual, on (B, C, h, w)."""
        h = self.norm(block.group_norm, x).flatten(2).mT  # (B, C, h, w) -> (B, h·w, C)
        h = self._attention(block, h, h).mT.unflatten(2, x.shape[2:])  # -> (B, C, h, w)
        return x + h

    def transformer(self, block: DiffusersModule, x: Tensor, contexts: tuple[Tensor, ...]) -> Tensor:
        """Run a spatial transformer on (B, C, h, w).

        Args:
            contexts: per transformer block, the vector (B, C) that its cross-attention over one token adds
                everywhere, or the tokens (B, tokens, dim) themselves.
        """
        h = self.norm(block.norm, x).permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)
        h = _pointwise(block.proj_in, h).flatten(1, 2)  # -> (B, h·w, C)
        for inner, context in zip(block.transformer_blocks, contexts, strict=True):
            normed = inner.norm1(h)
            h = h + self._attention(inner.attn1, normed, normed)
            is_vector = context.ndim == 2
            h = h + (context[:, None] if is_vector else self._attention(inner.attn2, inner.norm2(h), context))
            h = h + self._feed_forward(inner.ff, inner.norm3(h))
        h = _pointwise(block.proj_out, h).unflatten(1, x.shape[2:])  # -> (B, h, w, C)
        return x + h.permute(0, 3, 1, 2)

    def upsample(self, layer: DiffusersModule, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(layer.conv, F.interpolate(x, size, mode="nearest"))

    def _attention(self, block: DiffusersModule, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = block.to_q(x), block.to_k(context), block.to_v(context)
        q, k, v = (y.unflatten(-1, (block.heads, -1)) for y in (q, k, v))  # (B, N, H·D) -> (B, N, H, D)
        return block.to_out[0](self.attend(q, k, v).flatten(2))

    def _feed_forward(self, block: DiffusersModule, x: Tensor) -> Tensor:
        halves = block.net[0].proj(x)
        return block.net[2](geglu(halves) if self.keep_less else geglu_reference(halves))


def _pointwise(layer: DiffusersModule, x: Tensor) -> Tensor:
    """Apply a 1×1 convolution, or the linear layer some models have in its place, to channels in the last axis."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)
