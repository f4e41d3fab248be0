"""The costs of the parts of an iteration, an image each: bytes and operations, counted with `footprint`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ld3m import networks
from ld3m.chain import reverse_chain
from ld3m.config import ResolvedDistillConfig
from ld3m.data.ranges import to_pixels
from ld3m.matching import LOSSES, Line, Work
from ld3m.matching.gradient import sees_whole_batches
from ld3m.priors import Prior
from ld3m.runtime import seeds
from ld3m.runtime.footprint import Pass, footprint, largest_result, peak_bytes, size_of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of an iteration.

    Args:
        steps: T of the chain; 0 for no chain.
        real_batch: real images of a class; 0 where none are rendered against.
        latent_size: side of the latents; by the resolution when None.
    """

    resolution: int
    steps: int
    ipc: int
    num_classes: int
    algorithm: str
    real_batch: int
    guidance_scale: float = 3.0
    network: str = "ConvNet"
    width: int | None = None
    student_steps: int = 20
    latent_size: int | None = None

    @classmethod
    def of(cls, config: ResolvedDistillConfig, *, has_chain: bool, num_classes: int, real_batch: int) -> "Workload":
        """Return the work of a distillation with these settings."""
        own = {"steps": config.steps if has_chain else 0, "num_classes": num_classes, "real_batch": real_batch}
        return cls(**own, **{f.name: getattr(config, f.name) for f in fields(cls) if f.name not in own})

    @property
    def is_streamed(self) -> bool:
        """Whether a few classes are matched at a time."""
        return LOSSES[self.algorithm].is_streamed

    @property
    def joins_classes(self) -> bool:
        """Whether the real images of all classes in flight are in the network together."""
        return LOSSES[self.algorithm].joins_classes


@dataclass(frozen=True)
class Costs:
    """Bytes; of one image where nothing else is said.

    Args:
        resident: weights of prior and network, parameters of all images with gradient, momentum and the last good copy.
        latent: a latent with its conditioning.
        picture: an image (3, H, W).
        chain: an evaluation of the denoiser with its guidance row; nothing without a chain.
        chain_free: the same without gradient.
        quantising: done for all images in flight at the chain's start.
        decoding: latents to image.
        decoding_free: the same without gradient.
        real, synthetic, gradients: as of `LossCosts`.
        real_map: elements of the matched network's largest map.
        cuts_real_batch: whether the real images may go through the network in chunks.
        is_graphed: whether evaluations are CUDA graphs, whose memory stays theirs.
    """

    resident: int
    latent: int
    picture: int
    chain: Pass
    chain_free: int
    quantising: int
    decoding: Pass
    decoding_free: int
    real: Line
    synthetic: Line
    gradients: int
    real_map: int
    cuts_real_batch: bool
    is_graphed: bool = False

    def saved_only(self) -> "Costs":
        """Return the part of the costs that autograd keeps of chain and decoder."""
        chain, decoding = (replace(p, forward=p.held, peak=p.held) for p in (self.chain, self.decoding))
        none = {name: 0 for name in ("resident", "picture", "chain_free", "quantising", "decoding_free", "gradients")}
        return replace(self, **none, chain=chain, decoding=decoding, real=Line(), synthetic=Line(), is_graphed=False)


def count_costs(prior: Prior, work: Workload) -> Costs:
    """Count on the prior's device."""
    is_graphed = prior.frozen.graphs is not None
    if (
        is_graphed and prior.frozen.execution is not None
    ):  # a replay has its activations already, and its operations are not seen
        prior = copy.copy(prior).set_execution(replace(prior.frozen.execution, cuda_graphs=False))
    device, side = prior.device, work.latent_size or work.resolution // prior.downsample
    latents = torch.zeros(1, prior.latent_channels, side, side, device=device, requires_grad=True)
    leaf, row = latents.detach().clone().requires_grad_(), torch.zeros(1, dtype=torch.int64, device=device)
    conditioning = None
    if work.steps and prior.conditioning_shape is not None:
        conditioning = prior.null_conditioning(1).float().requires_grad_()

    def run() -> Tensor:
        noise, options = torch.zeros_like(latents), {"steps": 1, "retain": 1.0}
        return reverse_chain(prior, latents, conditioning, noise=noise, guidance_scale=work.guidance_scale, **options)

    def decode() -> Tensor:
        return to_pixels(prior.decode(leaf[row]), work.resolution)

    chain, chain_free, quantising = Pass(0, 0, 0, 0), 0, 0
    if work.steps:
        chain, chain_free = footprint(run, device), _free(run, device)
        quantising = _free(lambda: prior.quantize(latents), device)
    matched = matched_network(work, device)
    latent = latents.nbytes + (0 if conditioning is None else conditioning.nbytes)
    with seeds.scoped_global_rng(0, "costs"):  # dropout
        images = Work(work.resolution, work.num_classes, work.ipc, work.student_steps)
        matching = LOSSES[work.algorithm].costs(matched, images)
        real_map = map_elements(matched, images)
    return Costs(
        resident=size_of(*prior.modules(), matched) + 5 * work.num_classes * work.ipc * latent,
        latent=latent,
        picture=4 * 3 * work.resolution**2,
        chain=chain,
        chain_free=chain_free,
        quantising=quantising,
        decoding=footprint(decode, device),
        decoding_free=_free(decode, device),
        real=matching.real,
        synthetic=matching.synthetic,
        gradients=matching.gradients,
        real_map=real_map,
        cuts_real_batch=work.is_streamed and not sees_whole_batches(matched),
        is_graphed=is_graphed,
    )


def matched_network(work: Workload, device: torch.device) -> nn.Module:
    """Build the network that is matched, on the device."""
    size = {"num_classes": work.num_classes, "resolution": work.resolution, "width": work.width}
    if device.type == "meta":
        return networks.blueprint(work.network, **size)
    return networks.build(work.network, **size, generator=torch.Generator().manual_seed(0)).to(device)


def map_elements(network: nn.Module, work: Work) -> int:
    """Return the elements of the network's largest map of an image."""
    return largest_result(lambda: network(work.images(network, 2))) // 2  # two, for norms that look at the batch


@torch.no_grad()
def _free(call: Callable[[], Tensor], device: torch.device) -> int:
    return peak_bytes(call, device)
