"""What the configurations of priors hold: types, and bounds beyond which no network is meant."""

from collections.abc import Callable
from typing import Any, TypeVar

from ld3m.errors import CheckpointError, Ld3mError
from ld3m.runtime.devices import is_out_of_memory
from ld3m.runtime.reading import (
    anything,
    either,
    flag,
    listing,
    mapping,
    number,
    one_of,
    optional,
    shown_text,
    text,
    whole,
)

MAX_LEVELS, MAX_BLOCKS = 12, 500
_LAYERS, _SIDE, _CHANNELS = whole(1, 128), whole(1, 2048), whole(1, 65_536)
_DEPTH = whole(1, 128)
_OPTIONAL_LAYERS = either(one_of(None), _LAYERS, listing(_LAYERS, 1, MAX_LEVELS))
_HEADS = either(one_of(None), _CHANNELS, listing(_CHANNELS, 1, MAX_LEVELS))
_TRANSFORMERS = either(one_of(None), _LAYERS, listing(either(_LAYERS, listing(_LAYERS, 1, MAX_LEVELS)), 1, MAX_LEVELS))
_BLOCKS = listing(text(100), 1, MAX_LEVELS)
_SIDES = either(one_of(None), _SIDE, listing(_SIDE, 2, 2))

# A module's config.json in a diffusers folder; what its class knows beside these is its own affair.
MODULE = mapping(
    {},
    {
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "latent_channels": _CHANNELS,
        "block_out_channels": listing(_CHANNELS, 1, MAX_LEVELS),
        "down_block_types": _BLOCKS,
        "up_block_types": _BLOCKS,
        "layers_per_block": _OPTIONAL_LAYERS,
        "transformer_layers_per_block": _TRANSFORMERS,
        "reverse_transformer_layers_per_block": _TRANSFORMERS,
        "attention_head_dim": _HEADS,
        "num_attention_heads": _HEADS,
        "cross_attention_dim": either(one_of(None), _CHANNELS, listing(_CHANNELS, 1, MAX_LEVELS)),
        "norm_num_groups": optional(_CHANNELS),
        "num_class_embeds": optional(whole(1, 10**6)),
        "lookup_from_codebook": one_of(None, False),  # decodes numbers of codes, not latents
        "num_vq_embeddings": whole(1, 10**7),
        "vq_embed_dim": optional(_CHANNELS),
        "sample_size": _SIDES,
        "scaling_factor": number(1e-6, 1e6),
        "norm_eps": number(0, 1),
        "dropout": number(0, 1),
        "downsample_padding": whole(0, 8),
        "freq_shift": number(-10, 10),
        "mid_block_scale_factor": number(1e-6, 1e6),
        "class_embed_type": optional(text(100)),
        "act_fn": text(100),
        "only_cross_attention": either(flag, listing(flag, 1, MAX_LEVELS)),
    },
)
TRANSFORMER = mapping(
    {"sample_size": whole(1, 1024)},
    {
        "num_attention_heads": whole(1, 1024),
        "attention_head_dim": whole(1, 4096),
        "in_channels": _CHANNELS,
        "out_channels": optional(_CHANNELS),
        "num_layers": _DEPTH,
        "patch_size": whole(1, 64),
        "num_embeds_ada_norm": optional(whole(1, 10**6)),
        "norm_num_groups": _CHANNELS,
        "norm_eps": number(0, 1),
        "dropout": number(0, 1),
        "attention_bias": flag,
        "activation_fn": text(50),
        "norm_type": text(50),
    },
)
HEADS = mapping({}, {"num_attention_heads": anything})
_BETA = optional(number(0, 0.999))
SCHEDULER = mapping(
    {},
    {"num_train_timesteps": anything, "beta_start": _BETA, "beta_end": _BETA, "beta_schedule": optional(text(100))},
)
INDEX = mapping(
    {},
    {
        "name": text(300),
        "native_resolution": whole(1, 16_384),
        "class_names": optional(listing(text(), 1, 10**6)),
    },
)

# The YAML of a CompVis checkpoint.
_LEVELS = listing(whole(1, 64), 1, MAX_LEVELS)
_GIVEN = either(whole(-1, -1), _CHANNELS)
_UNET = mapping(
    {
        "image_size": _SIDE,
        "in_channels": _CHANNELS,
        "model_channels": _CHANNELS,
        "channel_mult": _LEVELS,
        "num_res_blocks": _LAYERS,
        "attention_resolutions": listing(whole(1, 2**MAX_LEVELS), 0, MAX_LEVELS),
    },
    {
        "num_heads": _GIVEN,
        "num_head_channels": _GIVEN,
        "transformer_depth": either(_LAYERS, listing(_LAYERS)),
        "context_dim": optional(_CHANNELS),
        "use_spatial_transformer": flag,
    },
)
_DDCONFIG = mapping(
    {"ch": _CHANNELS, "ch_mult": _LEVELS, "num_res_blocks": _LAYERS, "z_channels": _CHANNELS},
    {"attn_resolutions": listing(whole(0, 2**20), 0, 100)},
)
_FIRST_STAGE = mapping(
    {"target": text(), "params": mapping({"ddconfig": _DDCONFIG, "embed_dim": _CHANNELS}, {"n_embed": whole(1, 10**7)})}
)
COMPVIS = mapping(
    {
        "model": mapping(
            {
                "params": mapping(
                    {"unet_config": mapping({"params": _UNET}), "first_stage_config": _FIRST_STAGE},
                    {
                        "scale_factor": number(1e-6, 1e6),
                        "linear_start": number(1e-9, 0.999),
                        "linear_end": number(1e-9, 0.999),
                        "parameterization": text(100),
                    },
                )
            }
        )
    }
)

_Built = TypeVar("_Built")


def built(source: object, make: Callable[[], _Built], error: type[Ld3mError] = CheckpointError) -> _Built:
    """Return what `make` builds of a configuration, whose constructor raises what it likes where that does not fit.

    Args:
        source: the file of the configuration, for the error.
    """
    try:
        return make()
    except Ld3mError:
        raise
    except Exception as found:
        if is_out_of_memory(found):
            raise
        reason = shown_text(" ".join(f"{type(found).__name__}: {found}".split()))
        raise error(f"{source} describes a network that cannot be built ({reason}); restore it") from found


def require_buildable(config: dict[str, Any], source: object) -> None:
    """Refuse more blocks than any network has, each number of which is within bounds: building them takes minutes."""
    levels = len(config.get("block_out_channels") or ())
    layers, transformers = (
        max(_numbers(config.get(name)), default=1) for name in ("layers_per_block", "transformer_layers_per_block")
    )
    if levels * layers * transformers > MAX_BLOCKS:
        raise CheckpointError(
            f"{source} describes {levels} levels of {layers} layers of {transformers} transformers, expected at most "
            f"{MAX_BLOCKS} blocks in all; restore it"
        )


def _numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, int) else []


def side_of(sample_size: Any) -> int | None:
    """Return the one side of a square sample; a configuration may name both."""
    return sample_size[0] if isinstance(sample_size, list | tuple) else sample_size
