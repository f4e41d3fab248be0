"""The memory plan of the space "glad": how many images of a generator are made at once, and of how many it keeps the
activations."""

from dataclasses import dataclass

import torch

from ld3m.config import ResolvedDistillConfig
from ld3m.errors import ConfigError
from ld3m.matching import LOSSES
from ld3m.memory.plan import Plan, budget_of, even_size, images_in_flight, size_text
from ld3m.priors import StyleGAN
from ld3m.runtime.footprint import saved_bytes, size_of


def layer_of(config: ResolvedDistillConfig) -> int:
    """Return the layer of the features, which every preset says for this space."""
    assert config.layer is not None
    return config.layer


def plan_glad(config: ResolvedDistillConfig, generator: StyleGAN, num_classes: int) -> Plan:
    """Choose how many images are made at once, and of what fraction of them the activations are kept.

    Of an image, what autograd keeps from the features on is counted; the generator's weights are there in any case.

    Raises:
        ConfigError: not even one image fits, or not what is to be retained.
    """
    layer = layer_of(config)
    spec = generator.layers[layer].spec
    features = torch.zeros(1, spec.in_channels, spec.in_size, spec.in_size, device=generator.device)
    codes = torch.zeros(1, generator.num_codes - 1 - layer, generator.w_dim, device=generator.device)
    leaves = features.requires_grad_(), codes.requires_grad_()
    image_bytes = saved_bytes(generator, lambda: generator.synthesize(*leaves, layer))
    planner = GladPlanner(
        name=generator.name,
        layer=layer,
        resident=size_of(generator),
        image_bytes=image_bytes,
        num_classes=num_classes,
        fewest_classes=1 if LOSSES[config.algorithm].is_streamed else num_classes,
        ipc=config.ipc,
        most_images=images_in_flight(generator.device),
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
        most_images: that are made at once.
    """

    name: str
    layer: int
    resident: int
    image_bytes: int
    num_classes: int
    fewest_classes: int
    ipc: int
    most_images: int
    retain: float | None = None

    def plan(self, budget: int) -> Plan:
        """Return the plan with the most images kept within a budget in bytes; raise where not even one image fits."""
        fitting = (budget - self.resident) // self.image_bytes
        if fitting < 1:
            raise ConfigError(
                f"memory_budget of {size_text(budget)} does not hold the weights of {self.name} and the activations "
                f"of one image from layer {self.layer} on, {size_text(self.resident + self.image_bytes)}; raise it, or "
                "choose a later layer"
            )
        classes = min(even_size(self.num_classes, most // self.ipc) for most in (self.most_images, fitting))
        classes = max(classes, self.fewest_classes)
        images = classes * self.ipc
        micro_batch = min(images, fitting, self.most_images)
        holds = images if images <= fitting else fitting - micro_batch
        kept = holds if self.retain is None else round(self.retain * images)
        if kept > holds:
            raise ConfigError(
                f"retain {self.retain} keeps the activations of {kept} images, and memory_budget of "
                f"{size_text(budget)} holds those of {holds} beside {micro_batch} that are recomputed; lower one or "
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
            slow_down=1 + (1 - retain) / 2,  # three passes instead of two for an image that is recomputed
            budget_bytes=budget,
            planner=self,
        )

    @property
    def smallest(self) -> Plan:
        return self.plan(self.resident + self.image_bytes)
