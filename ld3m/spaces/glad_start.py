"""What a run in the space "glad" is prepared with: the generator, its memory plan, features and codes to start from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.config import STARTS, DistillConfig
from ld3m.data import Dataset
from ld3m.errors import ConfigError
from ld3m.memory.plan import IMAGES_IN_FLIGHT, Plan, budget_of, even_size, size_text
from ld3m.priors.classes import match_classes
from ld3m.priors.stylegan.generator import StyleGAN
from ld3m.runtime import seeds
from ld3m.runtime.footprint import saved_bytes, size_of
from ld3m.spaces import GladSpace
from ld3m.spaces.start import given_set

_LEARNT = {"latents": "features", "conditioning": "codes"}


def generator_name(config: DistillConfig) -> str:
    """Return the source of the generator; "builtin" is the one of random weights for the resolution."""
    if config.prior != "builtin":
        return config.prior
    resolution = config.resolution or 32
    return f"random:stylegan-{32 if resolution < 128 else 128 if resolution < 256 else 256}"


def check_generator(config: DistillConfig, generator: StyleGAN) -> None:
    """Refuse settings that do not fit the generator."""
    if not 0 <= config.layer < len(generator.layers):
        raise ConfigError(
            f"layer is from 0 to {len(generator.layers) - 1} for the {len(generator.layers)} layers of "
            f"{generator.name}, got {config.layer}"
        )
    if config.prior_config is not None:
        raise ConfigError("prior_config goes with a CompVis checkpoint; space 'glad' reads shapes from the weights")
    if config.class_ids is not None:
        match_classes(generator, config.class_ids, [None] * len(config.class_ids), config.class_ids)


def plan_glad(config: DistillConfig, generator: StyleGAN, num_classes: int) -> Plan:
    """Choose how many images are made at once, and of what fraction of them the activations are kept.

    Of an image, what autograd keeps from the features on is counted; the generator's weights are there in any case.

    Raises:
        ConfigError: not even one image fits, or not what is to be retained.
    """
    spec = generator.layers[config.layer].spec
    features = torch.zeros(1, spec.in_channels, spec.in_size, spec.in_size, device=generator.device)
    codes = torch.zeros(1, generator.num_codes - 1 - config.layer, generator.w_dim, device=generator.device)
    leaves = features.requires_grad_(), codes.requires_grad_()
    image_bytes = saved_bytes(generator, lambda: generator.synthesise(*leaves, config.layer))
    planner = GladPlanner(
        name=generator.name,
        layer=config.layer,
        resident=size_of(generator),
        image_bytes=image_bytes,
        num_classes=num_classes,
        fewest_classes=num_classes if config.algorithm == "mtt" else 1,
        ipc=config.ipc,
        retain=config.retain,
    )
    return planner.plan(budget_of(config.memory_budget, generator.device))


@dataclass(frozen=True)
class GladPlanner:
    """Planner of a generator's images.

    Args:
        resident: bytes of the generator.
        image_bytes: what autograd keeps of an image.
        fewest_classes: that are rendered together at least.
    """

    name: str
    layer: int
    resident: int
    image_bytes: int
    num_classes: int
    fewest_classes: int
    ipc: int
    retain: float | None = None

    def plan(self, budget: int) -> Plan:
        fitting = (budget - self.resident) // self.image_bytes
        if fitting < 1:
            raise ConfigError(
                f"memory_budget of {size_text(budget)} does not hold the weights of {self.name} and the activations "
                f"of one image from layer {self.layer} on, {size_text(self.resident + self.image_bytes)}; raise it, or "
                "choose a later layer"
            )
        classes = min(even_size(self.num_classes, most // self.ipc) for most in (IMAGES_IN_FLIGHT, fitting))
        classes = max(classes, self.fewest_classes)
        images = classes * self.ipc
        micro_batch = min(images, fitting, IMAGES_IN_FLIGHT)
        holds = images if images <= fitting else fitting - micro_batch
        kept = holds if self.retain is None else round(self.retain * images)
        if kept > holds:
            raise ConfigError(
                f"retain {self.retain} keeps the activations of {kept} images, and memory_budget of "
                f"{size_text(budget)} holds those of {holds} beside {micro_batch} that are made again; lower one or "
                "raise the other"
            )
        retain = 100 * kept // images / 100 if self.retain is None else self.retain
        return Plan(
            retain=retain,
            micro_batch=micro_batch,
            classes_in_flight=classes,
            decoder_batch=None,
            real_chunk=None,
            peak_bytes=self.resident + min(images, kept + micro_batch) * self.image_bytes,
            slow_down=1 + (1 - retain) / 2,  # three passes instead of two for an image that is made again
            budget_bytes=budget,
            planner=self,
        )

    @property
    def smallest(self) -> Plan:
        return self.plan(self.resident + self.image_bytes)


def glad_space(config: DistillConfig, generator: StyleGAN, dataset: Dataset, plan: Plan) -> GladSpace:
    """Build the space at its start."""
    features, codes = _start(config, generator, dataset)
    return GladSpace(
        generator,
        features,
        codes,
        layer=config.layer,
        learn=tuple(_LEARNT[name] for name in config.learn),
        resolution=config.resolution,
        retain=config.retain,
        micro_batch=plan.micro_batch,
    )


def _start(config: DistillConfig, generator: StyleGAN, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return (features, codes) in float32, of a random z an image, and of its class where the generator has classes."""
    rows = dataset.train.num_classes * config.ipc
    spec = generator.layers[config.layer].spec
    shapes = {
        "features": (rows, spec.in_channels, spec.in_size, spec.in_size),
        "codes": (rows, generator.num_codes - 1 - config.layer, generator.w_dim),
    }
    if config.init not in STARTS:
        return _given(config.init, dataset, shapes, generator.device)
    z = torch.randn(rows, generator.z_dim, generator=seeds.generator(config.seed, "initial latents"))
    ids = None
    if generator.num_classes is not None:
        matched = match_classes(generator, dataset.class_names, dataset.wnids, config.class_ids)
        ids = torch.tensor(matched).repeat_interleave(config.ipc).to(generator.device)
    with torch.no_grad():
        codes = generator.map(z.to(generator.device), ids)
        features = torch.cat([generator.features(part, config.layer) for part in codes.split(16)]).float()
    features = features.nan_to_num(0.0, 5.0, -5.0).clamp(-10, 10)  # as GLaD does
    if config.init == "noise":
        noise = torch.randn(shapes["features"], generator=seeds.generator(config.seed, "initial features"))
        std, mean = torch.std_mean(features, dim=(1, 2, 3), keepdim=True)
        features = noise.to(features) * std + mean
    return features, codes[:, 1 + config.layer :].float()


def _given(
    folder: str, dataset: Dataset, shapes: dict[str, tuple[int, ...]], device: torch.device
) -> tuple[Tensor, ...]:
    parameters = given_set(folder, dataset, ("real", "noise")).parameters
    found = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if found != shapes:
        raise ConfigError(f"init {folder} holds {found}; this run needs {shapes}: choose the set's own prior and layer")
    return tuple(parameters[name].to(device) for name in shapes)
