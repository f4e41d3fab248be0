"""The start of the optimisation of latents, conditioning and pixels: real images, noise, or another distilled set."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ld3m.config import INITS, ResolvedDistillConfig
from ld3m.data import Dataset
from ld3m.data.coreset import kmeans_images, random_images
from ld3m.data.ranges import resize, to_signed
from ld3m.errors import ConfigError
from ld3m.priors import Prior
from ld3m.priors.classes import match_classes
from ld3m.runs import result
from ld3m.runs.result import Result
from ld3m.runtime import processes, seeds


def initial_images(config: ResolvedDistillConfig, dataset: Dataset) -> Tensor:
    """Return the images (N, 3, H, W) in [0, 1] that the optimisation starts from, class-major."""
    num_classes = dataset.train.num_classes
    generator = seeds.generator(config.seed, "initial images")
    if config.init in ("real", "kmeans"):
        choose = random_images if config.init == "real" else kmeans_images
        return dataset.train.batch(choose(dataset.train, [config.ipc] * num_classes, generator))
    if config.init == "noise":
        shape = (num_classes * config.ipc, 3, config.resolution, config.resolution)
        noise = torch.randn(shape, generator=generator)
        return (noise * dataset.std.view(3, 1, 1) + dataset.mean.view(3, 1, 1)).clamp(0, 1)
    given = given_set(config.init, dataset)
    if given.images.shape != (num_classes * config.ipc, 3, config.resolution, config.resolution):
        raise ConfigError(
            f"init {config.init} holds images {tuple(given.images.shape)}; this run needs {num_classes} classes × "
            f"{config.ipc} at {config.resolution} px"
        )
    return given.images


def initial_latents(config: ResolvedDistillConfig, prior: Prior, images: Tensor, at_once: int) -> Tensor:
    """Return the latents (N, c, h, w) in float32: the images encoded, some at a time, or noise."""
    side = config.latent_size or config.resolution // prior.downsample
    shape = (len(images), prior.latent_channels, side, side)
    if config.init == "noise":
        return torch.randn(shape, generator=seeds.generator(config.seed, "initial latents")).to(prior.device)
    images = resize(images, side * prior.downsample)
    parts = list(enumerate(images.split(at_once)))
    own = processes.share(parts, processes.rank(), processes.world_size())  # whole parts, so that rounding is the same
    encoded = [(number, prior.encode(to_signed(part.to(prior.device))).cpu()) for number, part in own]
    found = dict(itertools.chain.from_iterable(processes.gather(encoded, "encode the images of the start")))
    return torch.cat([found[number] for number in range(len(parts))]).to(prior.device)


def initial_conditioning(config: ResolvedDistillConfig, prior: Prior, dataset: Dataset) -> Tensor | None:
    """Return the conditioning (N, tokens, dim) in float32; None where the prior has none."""
    if prior.conditioning_shape is None:
        return None
    rows = dataset.train.num_classes * config.ipc
    if config.init_conditioning == "normal":
        generator = seeds.generator(config.seed, "initial conditioning")
        return torch.randn((rows, *prior.conditioning_shape), generator=generator).to(prior.device)
    if config.init_conditioning == "null":
        return prior.null_conditioning(rows).float()
    ids = match_classes(prior, dataset.class_names, dataset.wnids, config.class_ids)
    return prior.embed(torch.tensor(ids).repeat_interleave(config.ipc)).float()


def given_set(init: str, dataset: Dataset, words: Sequence[str] = INITS) -> Result:
    """Open the distilled set of these classes that a setting `init` names which is none of its words."""
    if not (Path(init) / result.DISTILLED).is_file():
        raise ConfigError(f"init is {', '.join(map(repr, words))} or the folder of a distilled set, got {init!r}")
    given = result.load(init)
    pairs = enumerate(itertools.zip_longest(given.class_names, dataset.class_names))
    if differing := next(((label, *pair) for label, pair in pairs if pair[0] != pair[1]), None):
        label, own, wanted = differing
        raise ConfigError(
            f"init {init} has other classes than the data, or the same in another order: label {label} is {own!r} "
            f"there, and {wanted!r} here; choose a set distilled from this data"
        )
    return given
