"""What the parts of an iteration cost, an image each: bytes and operations, counted with `footprint`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ld3m import networks
from ld3m.chain import reverse_chain
from ld3m.matching import dc, dm
from ld3m.matching.gradient import directional, sees_whole_batches, weights_of
from ld3m.networks import fused
from ld3m.priors.base import Prior
from ld3m.runtime import seeds
from ld3m.runtime.footprint import Pass, footprint, peak_bytes, size_of
from ld3m.spaces import LatentSpace

STUDENT_BATCH = 256  # images of a step of trajectory matching, at most


@dataclass(frozen=True)
class Line:
    """Bytes that grow with the number of images."""

    fixed: float = 0
    each: float = 0

    def __call__(self, images: int) -> int:
        return int(self.fixed + self.each * images)


@dataclass(frozen=True)
class Costs:
    """Bytes; of one image where nothing else is said.

    Args:
        resident: weights of prior and network, parameters of all images with gradient, momentum and the last good copy.
        latent: a latent with its conditioning.
        picture: an image (3, H, W).
        chain: an evaluation of the denoiser with its guidance row; None without a chain.
        chain_free: the same without gradient.
        quantising: done for all images in flight at the chain's start.
        decoding: latents to image.
        decoding_free: the same without gradient.
        real: the network on real images, by those that are in it at once.
        synthetic: the network on synthetic images, by the classes in flight.
        gradients: of the network on a class's real images, where these are matched.
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
    cuts_real_batch: bool
    is_graphed: bool = False

    def saved_only(self) -> "Costs":
        """Return the part of the costs that autograd keeps of chain and decoder."""
        chain, decoding = (replace(p, forward=p.held, peak=p.held) for p in (self.chain, self.decoding))
        return Costs(0, self.latent, 0, chain, 0, 0, decoding, 0, Line(), Line(), 0, self.cuts_real_batch)


def count_costs(
    prior: Prior,
    *,
    resolution: int,
    latent_size: int,
    has_chain: bool,
    guidance_scale: float,
    algorithm: str,
    network: str,
    width: int | None,
    num_classes: int,
    ipc: int,
    student_steps: int,
) -> Costs:
    """Count on the prior's device. Arguments as of `plan_memory`."""
    is_graphed = prior.frozen.graphs is not None
    if is_graphed:  # a replay has its activations already, and its operations are not seen
        prior = copy.copy(prior).set_execution(replace(prior.frozen.execution, cuda_graphs=False))
    device, shape = prior.device, (1, prior.latent_channels, latent_size, latent_size)
    latents, conditioning = torch.zeros(shape, device=device, requires_grad=True), None
    if has_chain and prior.conditioning_shape is not None:
        conditioning = prior.null_conditioning(1).float().requires_grad_()
    space = LatentSpace(prior, latents, None, learn=("latents",), resolution=resolution, chain=None)

    def run() -> Tensor:
        noise, options = torch.zeros_like(latents), {"steps": 1, "retain": 1.0, "guidance_scale": guidance_scale}
        return reverse_chain(prior, latents, conditioning, noise=noise, **options)

    def decode() -> Tensor:
        return space.render(torch.zeros(1, dtype=torch.int64, device=device), ())

    chain, chain_free, quantising = Pass(0, 0, 0, 0), 0, 0
    if has_chain:
        chain, chain_free = footprint(run, device), _free(run, device)
        quantising = _free(lambda: prior.quantize(latents), device)
    matched = _network(network, device, num_classes=num_classes, resolution=resolution, width=width)
    latent = latents.nbytes + (0 if conditioning is None else conditioning.nbytes)
    with seeds.scoped_global_rng(0, "costs"):  # dropout
        real, synthetic = _sides(algorithm, matched, resolution, num_classes, ipc, student_steps)
    return Costs(
        resident=size_of(*prior.modules(), matched) + 5 * num_classes * ipc * latent,
        latent=latent,
        picture=4 * 3 * resolution**2,
        chain=chain,
        chain_free=chain_free,
        quantising=quantising,
        decoding=footprint(decode, device),
        decoding_free=_free(decode, device),
        real=real,
        synthetic=synthetic,
        gradients=size_of(matched) if algorithm == "dc" else 0,
        cuts_real_batch=algorithm != "mtt" and not sees_whole_batches(matched),
        is_graphed=is_graphed,
    )


def _network(name: str, device: torch.device, **options: int | None) -> nn.Module:
    if device.type == "meta":
        return networks.blueprint(name, **options)
    return networks.build(name, **options, generator=torch.Generator().manual_seed(0)).to(device)


def _sides(
    algorithm: str, network: nn.Module, resolution: int, num_classes: int, ipc: int, student_steps: int
) -> tuple[Line, Line]:
    """Count what real images, and the synthetic ones of a class, take in the network, beyond the images themselves."""
    weights, size = weights_of(network), size_of(network)
    device = next(network.parameters()).device
    label = torch.zeros((), dtype=torch.int64, device=device)

    def images(*count: int) -> Tensor:
        return torch.zeros(*count, 3, resolution, resolution, device=device)

    if algorithm == "dm":
        real = _line(lambda x: _embed(network, x), images, device)
        synthetic = _line(
            lambda x: dm.mean_embeddings(dm.Embedding(network), x.requires_grad_()[None]).sum().backward(),
            images,
            device,
        )
        return real, replace(synthetic, each=ipc * synthetic.each)
    if algorithm == "dc":
        names = dc.matched(weights, "layerwise-cosine")
        real = _line(lambda x: dc.real_gradient(network, weights, x, label, names), images, device)

        def match(x: Tensor) -> object:  # (C, S, 3, H, W)
            target = {name: weights[name].expand(len(x), *weights[name].shape) for name in names}
            return dc.match(network, weights, target, x, label.expand(len(x)))

        if sees_whole_batches(network):  # class by class
            return real, Line(_line(lambda x: match(x[None]), images, device)(ipc))
        one = _line(match, lambda count: images(count, 1), device)
        more = peak_bytes(partial(match, images(2, 2)), device) - one(2)  # by a second image of each of two classes
        return real, replace(one, each=one.each + (ipc - 1) * more / 2)
    # The student's weights of every step and the expert's at two; of every batch the images, augmented, with a graph.
    batch = min(STUDENT_BATCH, num_classes * ipc)
    step = _line(
        lambda x: directional(network, weights, weights, x, label.expand(len(x)), in_weights=True), images, device
    )
    waiting = (student_steps + 5) * size + student_steps * batch * 4 * images(1).nbytes
    return Line(), Line(waiting + step(batch))


def _line(call: Callable[[Tensor], object], images: Callable[[int], Tensor], device: torch.device) -> Line:
    """Count a call on two and on four images, and draw a line through both."""
    two, four = (peak_bytes(partial(call, images(count)), device) for count in (2, 4))
    each = (four - two) / 2
    return Line(two - 2 * each, each)


@torch.no_grad()
def _embed(network: nn.Module, images: Tensor) -> Tensor:
    return dm.mean_embeddings(dm.Embedding(fused(network)), images[None])


@torch.no_grad()
def _free(call: Callable[[], Tensor], device: torch.device) -> int:
    return peak_bytes(call, device)
