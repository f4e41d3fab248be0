"""The modules of diffusers that the frozen networks reproduce: every kind, and its settings."""

from collections.abc import Callable

from torch import nn

from ld3m.priors.architecture import DiffusersModule

_UNET_OPTIONS = (
    "center_input_sample", "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type",
    "encoder_hid_dim", "time_cond_proj_dim", "time_embedding_act_fn", "timestep_post_act", "dual_cross_attention",
)  # fmt: skip

_AS_THEY_ARE = {
    "ModuleList", "Linear", "GroupNorm", "LayerNorm", "SiLU", "Dropout", "Timesteps", "TimestepEmbedding", "GEGLU",
    "Decoder", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn", "DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D",
    "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "UpDecoderBlock2D",
}  # fmt: skip


def _unet(unet: DiffusersModule) -> bool:
    config = unet.config
    return (
        not any(config.get(option) for option in _UNET_OPTIONS)
        and config.get("time_embedding_type", "positional") == "positional"
        and config.act_fn == "silu"
        and unet.class_embedding is None
        and None not in (unet.mid_block, unet.conv_norm_out)
    )


def _resnet(block: DiffusersModule) -> bool:
    adds_time = block.time_emb_proj is None or block.time_embedding_norm == "default"
    in_place = not (block.up or block.down or block.skip_time_act)
    return adds_time and in_place and block.output_scale_factor == 1 and isinstance(block.nonlinearity, nn.SiLU)


def _attention(block: DiffusersModule) -> bool:
    absent = (block.spatial_norm, block.norm_q, block.norm_k, block.norm_cross, block.added_kv_proj_dim)
    return all(x is None for x in absent) and block.rescale_output_factor == 1


def _transformer_block(block: DiffusersModule) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not (block.only_cross_attention or block.double_self_attention or hasattr(block, "fuser"))
        and type(block.ff.net[0]).__name__ == "GEGLU"
    )


_WITH_SETTINGS: dict[str, Callable[[DiffusersModule], bool]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet,
    "ResnetBlock2D": _resnet,
    "Attention": _attention,
    "BasicTransformerBlock": _transformer_block,
    "Transformer2DModel": lambda block: block.is_input_continuous,
    "FeedForward": lambda block: len(block.net) == 3,
    "Conv2d": lambda layer: layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros",
    "Downsample2D": lambda layer: layer.norm is None and layer.use_conv and layer.padding == 1,
    "Upsample2D": lambda layer: layer.norm is None and layer.use_conv and layer.interpolate and layer.name == "conv",
}


def obstacle(network: nn.Module) -> str:
    """Say which part of a network has no frozen counterpart; "" when every one has."""
    for name, module in network.named_modules():
        where, kind = name or "the network itself", type(module).__name__
        if kind in _WITH_SETTINGS and not _WITH_SETTINGS[kind](module):
            return f"{where}: {kind} with other settings than the known ones"
        if kind not in _WITH_SETTINGS and kind not in _AS_THEY_ARE:
            return f"{where}: {kind}"
    return ""
