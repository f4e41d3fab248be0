"""Features of a layer, and the codes of the layers after it, through the rest of a frozen generator ("glad")."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ld3m.config import INITS, DistillConfig, ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.data.ranges import to_pixels
from ld3m.errors import ConfigError
from ld3m.memory.glad import layer_of, plan_glad
from ld3m.memory.plan import Plan
from ld3m.priors import Prior, StyleGAN, load_stylegan
from ld3m.priors.classes import match_classes
from ld3m.runtime import seeds
from ld3m.spaces.base import check_class_ids
from ld3m.spaces.start import given_set

_LEARNT = {"latents": "features", "conditioning": "codes"}


class GladSpace:
    """GLaD's space: features, and one modulation code a layer, as parameters (Cazenavette et al. 2023).

    Args:
        features: (N, C, h, w), what the first `layer` layers return.
        codes: (N, layers from number `layer` on, w_dim).
        learn: which of "features" and "codes" are optimised.
        resolution: of the rendered images; those of a generator of another size are resized with antialiasing.
        retain: fraction of the images whose activations are kept for the backward pass; the others are recomputed.
        micro_batch: images made at once.
    """

    def __init__(
        self,
        generator: StyleGAN,
        features: Tensor,
        codes: Tensor,
        *,
        layer: int,
        learn: tuple[str, ...],
        resolution: int,
        retain: float,
        micro_batch: int,
    ) -> None:
        self.generator, self.layer, self.resolution = generator, layer, resolution
        self.retain, self.micro_batch = retain, micro_batch
        self.parameters = {
            name: tensor.detach().clone().requires_grad_(name in learn)
            for name, tensor in (("features", features), ("codes", codes))
        }

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        rows = rows.to(self.generator.device, non_blocking=True)
        kept, again = rows.tensor_split([round(self.retain * len(rows))])
        images = [self._synthesize(part) for part in kept.split(self.micro_batch) if len(part)]
        images += [
            checkpoint(self._synthesize, part, use_reentrant=False, preserve_rng_state=False)
            for part in again.split(self.micro_batch)
            if len(part)
        ]
        return to_pixels(torch.cat(images), self.resolution)

    def apply_plan(self, plan: Plan) -> None:
        self.retain, self.micro_batch = plan.retain, plan.micro_batch

    def _synthesize(self, rows: Tensor) -> Tensor:
        return self.generator.synthesize(self.parameters["features"][rows], self.parameters["codes"][rows], self.layer)

    def project(self) -> None:
        """Features and codes may go anywhere."""


class GladSetup:
    """The set-up of a distillation in this space."""

    settings = frozenset({"memory_budget", "retain", "micro_batch", "layer", "lr_codes"})
    has_chain = False
    gpu_dtype = "float32"  # the filters would be rounded as well
    inits: tuple[str, ...] = ("real", "noise")  # there is no encoder

    def open_prior(self, config: DistillConfig, given: Prior | StyleGAN | None, device: torch.device) -> StyleGAN:
        if isinstance(given, Prior):
            raise ConfigError(f"space 'glad' takes a StyleGAN as prior, got {given.name}; choose one that fits")
        return load_stylegan(given or generator_name(config), device=device, dtype=config.dtype or "float32")

    def check(self, config: ResolvedDistillConfig, prior: StyleGAN) -> None:
        if config.init == "kmeans":
            raise ConfigError("init 'kmeans' needs an encoder, which space 'glad' has not; take 'real' or 'noise'")
        layer, num_layers = layer_of(config), len(prior.layers)
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"layer is from 0 to {num_layers - 1} for the {num_layers} layers of {prior.name}, got {layer}"
            )
        if config.prior_config is not None:
            raise ConfigError("prior_config goes with a CompVis checkpoint; space 'glad' reads shapes from the weights")
        if config.class_ids is not None:
            check_class_ids(prior, config.class_ids)

    def plan(self, config: ResolvedDistillConfig, prior: StyleGAN, dataset: Dataset) -> Plan:
        return plan_glad(config, prior, dataset.train.num_classes)

    def build(
        self, config: ResolvedDistillConfig, prior: StyleGAN, dataset: Dataset, plan: Plan | None, device: torch.device
    ) -> GladSpace:
        assert plan is not None
        features, codes = initial_features(config, prior, dataset)
        return GladSpace(
            prior,
            features,
            codes,
            layer=layer_of(config),
            learn=tuple(_LEARNT[name] for name in config.learn),
            resolution=config.resolution,
            retain=plan.retain,
            micro_batch=plan.micro_batch,
        )


def generator_name(config: DistillConfig) -> str:
    """Return the source of the generator; "builtin" is the one of random weights for the resolution."""
    if config.prior != "builtin":
        return config.prior
    resolution = config.resolution or 32
    return f"random:stylegan-{32 if resolution < 128 else 128 if resolution < 256 else 256}"


def initial_features(config: ResolvedDistillConfig, generator: StyleGAN, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return (features, codes) in float32, of a random z an image, and of its class where the generator has classes."""
    num_images = dataset.train.num_classes * config.ipc
    layer = layer_of(config)
    spec = generator.layers[layer].spec
    shapes = {
        "features": (num_images, spec.in_channels, spec.in_size, spec.in_size),
        "codes": (num_images, generator.num_codes - 1 - layer, generator.w_dim),
    }
    if config.init not in INITS:
        return _given(config.init, dataset, shapes, generator.device)
    z = torch.randn(num_images, generator.z_dim, generator=seeds.generator(config.seed, "initial latents"))
    ids = None
    if generator.num_classes is not None:
        matched = match_classes(generator, dataset.class_names, dataset.wnids, config.class_ids)
        ids = torch.tensor(matched).repeat_interleave(config.ipc).to(generator.device)
    with torch.no_grad():
        codes = generator.map(z.to(generator.device), ids)
        features = torch.cat([generator.features(part, layer) for part in codes.split(16)]).float()
    features = features.nan_to_num(0.0, 5.0, -5.0).clamp(-10, 10)  # as GLaD does
    if config.init == "noise":
        noise = torch.randn(shapes["features"], generator=seeds.generator(config.seed, "initial features"))
        std, mean = torch.std_mean(features, dim=(1, 2, 3), keepdim=True)
        features = noise.to(features) * std + mean
    return features, codes[:, 1 + layer :].float()


def _given(
    folder: str, dataset: Dataset, shapes: dict[str, tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Tensor]:
    parameters = given_set(folder, dataset, ("real", "noise")).parameters
    found = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if found != shapes:
        raise ConfigError(f"init {folder} holds {found}; this run needs {shapes}: choose the set's own prior and layer")
    return parameters["features"].to(device), parameters["codes"].to(device)
