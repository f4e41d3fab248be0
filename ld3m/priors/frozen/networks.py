"""Denoiser and decoder from their modules' weights, without what a frozen network does not need.

Two simplifications are exact. Softmax over a single key is 1, so cross-attention over one token is
to_out(to_v(c)): one vector for all positions, the same at every step, without query, key and the norm before them. And
the timestep enters as a row of a table: each residual block's projection of it, added to its first convolution's bias.
"""

from itertools import islice, repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ld3m.priors.architecture import NUM_TRAIN_STEPS, DiffusersModule
from ld3m.priors.frozen.blocks import Blocks
from ld3m.priors.frozen.execution import ExecutionConfig

Contexts = dict[nn.Module, tuple[Tensor, ...]]  # by transformer: what each of its blocks reads


class FrozenDenoiser:
    """A `UNet2DModel` or `UNet2DConditionModel` on its own weights.

    Weights are read where they stand, but the table is computed once: build another one when the weights change.
    """

    def __init__(self, unet: DiffusersModule, execution: ExecutionConfig) -> None:
        self.unet, self.blocks = unet, Blocks(execution)
        modules = list(unet.modules())
        self.resnets = [m for m in modules if type(m).__name__ == "ResnetBlock2D"]
        self.transformers = [m for m in modules if type(m).__name__ == "Transformer2DModel"]
        self.cross = [inner.attn2 for outer in self.transformers for inner in outer.transformer_blocks]
        self.single_token = execution.single_token and bool(self.cross)
        self._shift_widths = [resnet.out_channels for resnet in self.resnets]
        self._cross_widths = [attention.to_out[0].out_features for attention in self.cross]
        self.table = None
        if execution.time_table:
            self.table = self._rows(torch.arange(NUM_TRAIN_STEPS, device=unet.device))

    def row(self, timestep: int) -> Tensor:
        """Return what the network reads of a timestep: (sum of the residual blocks' channels,)."""
        if self.table is not None:
            return self.table[timestep]
        return self._rows(torch.full((1,), timestep, device=self.unet.device))[0]

    def project(self, conditioning: Tensor) -> Tensor:
        """Return what the network reads of the conditioning (B, tokens, dim).

        For one token: the vectors of all cross-attentions, (B, sum of their channels), differentiable. What has been
        projected is returned as it is.
        """
        if not self.single_token or conditioning.ndim == 2 or conditioning.shape[1] != 1:
            return conditioning
        token = _precise(conditioning[:, 0])  # (B, 1, dim) -> (B, dim)
        vectors = [_linear(attention.to_out[0], _linear(attention.to_v, token)) for attention in self.cross]
        return torch.cat(vectors, 1).to(conditioning.dtype)

    def __call__(
        self, latents: Tensor, row: Tensor, conditioning: Tensor | None = None, channels: int | None = None
    ) -> Tensor:
        """Predict the noise in latents (B, c, h, w), in their dtype.

        Args:
            row: of `row`.
            conditioning: (B, tokens, dim), or its `project`ion; None for an unconditional network.
            channels: of the network's, from the first on; those of the latents when None.
        """
        unet, blocks = self.unet, self.blocks
        shifts = dict(zip(self.resnets, row.split(self._shift_widths), strict=True))
        contexts = {} if conditioning is None else self._contexts(self.project(conditioning).to(unet.dtype))
        x = blocks.conv(unet.conv_in, latents.to(unet.dtype).contiguous(memory_format=blocks.format))
        skips = [x]
        for block in unet.down_blocks:
            for k, resnet in enumerate(block.resnets):
                x = blocks.resnet(resnet, x, shifts[resnet])
                x = self._attend(block, k, x, contexts)
                skips.append(x)
            for layer in block.downsamplers or ():
                x = blocks.conv(layer.conv, x)
                skips.append(x)
        x = blocks.resnet(unet.mid_block.resnets[0], x, shifts[unet.mid_block.resnets[0]])
        for k, resnet in enumerate(unet.mid_block.resnets[1:]):
            x = blocks.resnet(resnet, self._attend(unet.mid_block, k, x, contexts), shifts[resnet])
        for block in unet.up_blocks:
            for k, resnet in enumerate(block.resnets):
                x = blocks.resnet(resnet, torch.cat([x, skips.pop()], 1), shifts[resnet])
                x = self._attend(block, k, x, contexts)
            for layer in block.upsamplers or ():
                x = blocks.upsample(layer, x, (skips[-1].shape[2], skips[-1].shape[3]))
        x = blocks.conv(unet.conv_out, blocks.norm_silu(unet.conv_norm_out, x))
        # Models with learned variances return 2c channels; the second half is not the noise.
        return x[:, : channels or latents.shape[1]].to(latents.dtype)

    def _attend(
        self, block: DiffusersModule, k: int, x: Tensor, contexts: dict[nn.Module, tuple[Tensor, ...]]
    ) -> Tensor:
        """Run the k-th attention of a block, where it has any: between positions, or a transformer's."""
        attention = (getattr(block, "attentions", None) or [None] * (k + 1))[k]
        if attention is None:
            return x
        if attention in contexts:
            return self.blocks.transformer(attention, x, contexts[attention])
        return self.blocks.self_attention(attention, x)

    def _contexts(self, projected: Tensor) -> Contexts:
        """Deal out what each transformer's blocks read, in the order of `self.cross`."""
        is_vectors = projected.ndim == 2
        parts = iter(projected.split(self._cross_widths, 1) if is_vectors else repeat(projected))
        return {outer: tuple(islice(parts, len(outer.transformer_blocks))) for outer in self.transformers}

    @torch.no_grad()
    def _rows(self, timesteps: Tensor) -> Tensor:
        """Return shifts (T, sum of channels): every residual block's projection and first bias."""
        first, second = self.unet.time_embedding.linear_1, self.unet.time_embedding.linear_2
        embedding = _precise(self.unet.time_proj(timesteps).to(self.unet.dtype))
        active = F.silu(_linear(second, F.silu(_linear(first, embedding))))
        rows = [_linear(resnet.time_emb_proj, active) + resnet.conv1.bias for resnet in self.resnets]
        return torch.cat(rows, 1).to(self.unet.dtype)


class FrozenDecoder:
    """The decoder of a diffusers first stage on its own weights: latents (B, c, h, w) -> images."""

    def __init__(self, first_stage: DiffusersModule, execution: ExecutionConfig) -> None:
        self.first_stage, self.blocks = first_stage, Blocks(execution)

    def __call__(self, latents: Tensor) -> Tensor:
        decoder, blocks = self.first_stage.decoder, self.blocks
        x = latents.contiguous(memory_format=blocks.format)
        if self.first_stage.post_quant_conv is not None:
            x = blocks.conv(self.first_stage.post_quant_conv, x)
        x = blocks.conv(decoder.conv_in, x)
        middle = decoder.mid_block
        x = blocks.resnet(middle.resnets[0], x)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = blocks.resnet(resnet, x if attention is None else blocks.self_attention(attention, x))
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = blocks.resnet(resnet, x)
            for layer in block.upsamplers or ():
                x = blocks.upsample(layer, x, (2 * x.shape[2], 2 * x.shape[3]))
        return blocks.conv(decoder.conv_out, blocks.norm_silu(decoder.conv_norm_out, x))


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in the precision of x, whatever its weights have: for what is computed once a chain or less."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
