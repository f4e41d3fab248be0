"""Whole iterations, as `ld3m.distill` runs them, against the schemes of the released LD3M and GLaD code.

`iter/{dc,dm,mtt}-{128-t10,256-t20}-ipc{1,10}` are of cin256's shape with random weights; `against` is "recreated", the
released LD3M scheme on diffusers' modules in float32 with convolutions in TF32, or "glad", GLaD's scheme on a
StyleGAN-XL generator at the same resolution. Both get the real images and augmentations that ours gets.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from benchmarks import glad, official, released_losses
from ld3m.distillation import objectives
from ld3m.distillation.experts import train_experts
from ld3m.distillation.job import Job, objective_of, prepare
from ld3m.distillation.objectives import ClassMatching, TrajectoryMatching
from ld3m.priors import Prior, load_prior
from ld3m.runtime import seeds
from ld3m.spaces import LatentSpace

NUM_CLASSES = 10
SPLIT = 10  # images that the released schemes generate at once
GLAD = {128: "random:stylegan-xl-128", 256: "random:stylegan-xl-256"}
CASES = {  # algorithm, resolution, steps, images per class
    "gpu": [
        *((algorithm, 128, 10, ipc) for algorithm in ("dc", "dm", "mtt") for ipc in (1, 10)),
        *((algorithm, 256, 20, 1) for algorithm in ("dc", "dm", "mtt")),
    ],
    "smoke": [(algorithm, 16, 2, 1) for algorithm in ("dc", "dm", "mtt")],
}
SMALL: dict[str, object] = {
    "prior": "random:tiny",
    "network": "ConvNet",
    "width": 4,
    "real_batch": 4,
    "student_steps": 2,
}
SMALL["class_ids"] = (0,) * NUM_CLASSES


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare."""
    for algorithm, resolution, steps, ipc in CASES.get(suite, ()):
        with tempfile.TemporaryDirectory() as folder:  # of experts, read in every iteration
            settings = {"algorithm": algorithm, "resolution": resolution, "steps": steps, "ipc": ipc, "device": device}
            yield from _ld3m_cases(suite, settings, folder)
    if suite != "gpu":
        yield _glad_case(suite)


def _ld3m_cases(suite: str, settings: dict[str, object], folder: str) -> Iterator[dict]:
    is_gpu, (algorithm, resolution, steps, ipc, _) = suite == "gpu", settings.values()
    settings = settings | ({"prior": _prior("bfloat16"), "preset": "paper"} if is_gpu else SMALL)
    stock_prior = {"prior": _prior("float32")} if is_gpu else {}
    data = random_images(resolution, 300 if is_gpu else 10)
    if algorithm == "mtt":
        settings |= {"experts": folder, "max_start_epoch": 1, "expert_epochs": 2}
        _train_expert(data, folder, settings)
    stock = _job(data, settings | {"dtype": "float32", "cuda_graphs": False} | stock_prior)
    job = _job(data, settings)
    plain = _job(data, settings | {"cuda_graphs": False})
    own, recreated, counted = (objective_of(each, progress=False) for each in (job, stock, plain))
    released = released_space(stock)

    def work() -> None:
        if (graphs := job.space.prior.frozen.graphs) is not None:
            graphs.release()  # beside what a plain iteration keeps they may not fit
        counted.backward(0)

    case = {
        "name": f"iter/{algorithm}-{resolution}-t{steps}-ipc{ipc}",
        "mode": "iteration",
        "shape": tuple(job.space.parameters["latents"].shape),
        "dtype": job.config.dtype,
        "ours": lambda: gradients(job, lambda: own.backward(0)),
        "work": work,
        "runs": 1 if not is_gpu else 20 if resolution == 128 and ipc == 1 else 5,
    }
    # Noise of bfloat16 grows through a chain of random weights: on a GPU the error is told, and no ground to refuse.
    # The released trajectories leave second-order terms out, which ours keeps by default.
    yield case | {
        "against": "recreated",
        "baseline": lambda: gradients(stock, lambda: released_iteration(released, recreated)),
        "tolerance": None if algorithm == "mtt" else math.inf if is_gpu else 2e-2,
    }
    if is_gpu:
        options = settings | {"space": "glad", "prior": GLAD[resolution], "dtype": "float32", "cuda_graphs": None}
        yield case | {"against": "glad", "baseline": _glad_baseline(data, options), "tolerance": None}


def _glad_case(suite: str) -> dict:
    """Return ours in GLaD's space against its published scheme, at 32 px."""
    settings = {"space": "glad", "algorithm": "dc"}
    settings |= {"width": 4, "real_batch": 4, "layer": 5} if suite == "smoke" else {}
    job = _job("builtin", settings)
    objective = objective_of(job, progress=False)
    return {
        "name": "iter/glad-32",
        "mode": "iteration",
        "shape": tuple(job.space.parameters["features"].shape),
        "dtype": "float32",
        "against": "glad",
        "ours": lambda: gradients(job, lambda: objective.backward(0)),
        "baseline": _glad_baseline("builtin", settings),
        "tolerance": None,  # the published scheme does not clamp images
        "runs": 5 if suite == "cpu" else 1,
    }


@cache
def _prior(dtype: str) -> Prior:
    """Return the model of ImageNet's size, whose random weights take seconds to draw, once for all settings."""
    return load_prior("random:cin256", device="cuda", dtype=getattr(torch, dtype))


def random_images(resolution: int, per_class: int) -> tuple[Tensor, Tensor]:
    """Return images (NUM_CLASSES · per_class, 3, H, W) uint8 of noise, and their labels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (NUM_CLASSES * per_class, 3, resolution, resolution), dtype=torch.uint8, generator=draw
    )
    return images, torch.arange(NUM_CLASSES * per_class) % NUM_CLASSES


def _job(data: object, settings: dict[str, object]) -> Job:
    fixed = {"evaluate": "none"} | ({} if data == "builtin" else {"class_ids": tuple(range(NUM_CLASSES))})
    return prepare(data, fixed | settings, out=None, resume=False, overwrite=False)


def _train_expert(data: tuple[Tensor, Tensor], folder: str, settings: dict[str, object]) -> None:
    job = _job(data, {k: v for k, v in settings.items() if k not in ("experts", "algorithm")})
    options = {"network": job.config.network, "width": job.config.width, "device": job.device, "progress": False}
    train_experts(job.dataset, folder, num_experts=1, epochs=2, **options)


def gradients(job: Job, backward: Callable[[], object]) -> list[Tensor]:
    """Clear the gradients of the job's parameters, compute them anew, and return them."""
    parameters = [p for p in job.space.parameters.values() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    backward()
    return [parameter.grad for parameter in parameters]


class ReleasedSpace(LatentSpace):
    """The space of latents whose chain runs as the released sampler does, on diffusers' modules."""

    def _run_chain(self, latents: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        options = {"steps": self.chain.steps, "guidance_scale": self.chain.guidance_scale}
        conditioning = self.parameters["conditioning"][index]
        return official.generate(self.prior, latents, conditioning, noise, **options)


def released_space(job: Job) -> ReleasedSpace:
    """Return the job's space over the same parameters, run by the released scheme."""
    space = job.space
    space.prior.set_execution(None)
    released = ReleasedSpace(
        space.prior, *space.parameters.values(), learn=tuple(space.parameters), resolution=space.resolution,
        chain=space.chain,
    )  # fmt: skip
    released.parameters = space.parameters
    return released


def released_iteration(space: ReleasedSpace, objective: ClassMatching | TrajectoryMatching) -> None:
    """Generate, differentiate the loss at the images, generate again and back-propagate."""
    rows = torch.arange(len(space.parameters["latents"]), device=objective.device).split(SPLIT)
    normalize = objective.dataset.normalize
    with official.checkpointed_transformer_blocks(space.prior):
        with torch.no_grad():
            images = torch.cat([normalize(space.render(part, (0,))) for part in rows])
        cotangents = image_gradient(objective, images).split(SPLIT)
        for part, cotangent in zip(rows, cotangents, strict=True):
            normalize(space.render(part, (0,))).backward(cotangent)


def image_gradient(objective: ClassMatching | TrajectoryMatching, images: Tensor, *, is_glad: bool = False) -> Tensor:
    """Return the gradient of iteration 0's loss at normalised images (N, 3, H, W), as the released code takes it."""
    config, device = objective.config, objective.device
    if isinstance(objective, TrajectoryMatching):
        start, target, batches, augment = objective._draws(0)
        return released_losses.trajectory_gradient(
            objective._network, start, target, images, objective._labels, config.student_lr, batches, augment
        )
    draw = seeds.generator(config.seed, "network", 0)
    network = objectives._network(config, objective.dataset, draw).to(device).train()
    augmentations = objective._augmentations(0)

    def class_at(label: int) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        real = objective._normalized(objective._real(0, label))
        return torch.tensor(label, device=device), augmentations[label], real

    classes = map(class_at, range(objective.dataset.train.num_classes))
    return released_losses.class_gradient(config.algorithm, network, classes, images, config.ipc, is_glad=is_glad)


def _glad_baseline(data: object, settings: dict[str, object]) -> Callable[[], tuple[Tensor, Tensor]]:
    settings = {k: v for k, v in settings.items() if k not in ("steps", "cuda_graphs")}
    job = _job(data, settings)
    objective, dataset = objective_of(job, progress=False), job.dataset
    parameters = [p.detach() for p in job.space.parameters.values()]
    mean, std = (tuple(values.tolist()) for values in (dataset.mean, dataset.std))
    return lambda: glad.iteration(
        job.space.generator, *parameters, job.space.layer,
        lambda images: image_gradient(objective, images, is_glad=True), split=SPLIT, mean=mean, std=std,
    )  # fmt: skip
