"""An iteration of the original LD3M or GLaD code, out of the user's own checkout, on a GPU.

`benchmarks.run` starts this file as a process of its own, since both repositories have modules of the same names:

    python benchmarks/checkout.py ld3m|glad DIR '{"algorithm": "dc", "resolution": 128, "steps": 10, "ipc": 1}'

Generation and its backward pass, networks, augmentation and the distance of gradients are the repository's functions.
Its loops stand inside `main`, between data loading and W&B, and cannot be called: the order of the calls is written
here, and the student of "mtt" is that of `released_losses`. LD3M's model has random weights; its code generates 64 x 64
latents at any resolution and resizes the images. Not run so far: no GPU was at hand.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
CONFIG = "src/latentdiff/configs/latent-diffusion/cin256-v2.yaml"
NEEDED = {  # repository: files that a checkout of it has, folders of its modules, functions called
    "ld3m": (
        ("src/glad_utils.py", "src/utils.py", CONFIG),
        ("src", "src/latentdiff", "src/taming-transformers-master"),
        ("ldm_latent_to_im_encode", "ldm_backward_encode", "load_model_from_config"),
    ),
    "glad": (
        ("glad_utils.py", "utils.py", "stylegan_xl/legacy.py"),
        (".",),
        ("load_sgxl", "prepare_latents", "latent_to_im", "gan_backward"),
    ),
}
SOURCES = {
    "ld3m": "https://github.com/humansensinglab/LD3M",
    "glad": "https://github.com/GeorgeCazenavette/glad",
}
CLASSES, REAL, RUNS, STUDENT_STEPS = 10, 256, 5, 20
LAYERS = {"dc": 16, "dm": 20, "mtt": 12}  # of GLaD's commands


def modules_of(repository: str, folder: Path) -> tuple[object, object]:
    """Import (glad_utils, utils) of a checkout, from inside it, as its scripts do; exit with one message otherwise."""
    files, paths, functions = NEEDED[repository]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        sys.exit(f"{folder} is no checkout of {SOURCES[repository]}: {', '.join(missing)} not found; clone it there")
    os.chdir(folder)
    sys.path[:0] = [str(folder / path) for path in paths]
    try:
        own, utils = importlib.import_module("glad_utils"), importlib.import_module("utils")
    except Exception as error:  # whatever its dependencies raise on import
        sys.exit(f"the code in {folder} cannot be imported ({error}); install its requirements in this environment")
    absent = [name for name in functions if not hasattr(own, name)]
    absent += [
        name for name in ("get_network", "match_loss", "DiffAugment", "ParamDiffAug") if not hasattr(utils, name)
    ]
    if absent:
        sys.exit(f"the code in {folder} has no {', '.join(absent)}; take the released version of {SOURCES[repository]}")
    return own, utils


def generation(
    repository: str, own: object, args: argparse.Namespace
) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """Return functions that make the images without gradient, and that push the images' gradient to the parameters."""
    if repository == "ld3m":
        model = own.load_model_from_config(own.OmegaConf.load(CONFIG), None).requires_grad_(False)
        sampler = own.DDIMSampler(model)
        conditioning = torch.randn(CLASSES * args.ipc, 1, 512, device="cuda", requires_grad=True)
        latents = torch.randn(CLASSES * args.ipc, 3, 64, 64, device="cuda", requires_grad=True)
        parts = list(zip(conditioning.split(args.sg_batch), latents.split(args.sg_batch), strict=True))
        options = {"latents": conditioning, "f_latents": latents, "G": model, "sampler": sampler, "args": args}
        return (
            lambda: torch.cat([own.ldm_latent_to_im_encode(sampler, model, *part, args) for part in parts]),
            lambda images: own.ldm_backward_encode(image_syn=images, **options),
        )
    generator, zdim, *_ = own.load_sgxl(args.res, args)
    class_map = {k: k for k in range(CLASSES)}
    made = own.prepare_latents(
        num_classes=CLASSES, im_size=(args.res, args.res), zdim=zdim, G=generator, class_map_inv=class_map, args=args
    )
    codes, features, _ = made
    parts = list(zip(codes.split(args.sg_batch), features.split(args.sg_batch), strict=True))
    return (
        lambda: torch.cat([own.latent_to_im(generator, part, args) for part in parts]),
        lambda images: own.gan_backward(latents=codes, f_latents=features, image_syn=images, G=generator, args=args),
    )


def matching(repository: str, algorithm: str, utils: object, args: argparse.Namespace) -> Callable[[Tensor], None]:
    """Return a function that leaves the loss's gradient in the images' `.grad`."""
    sys.path.append(str(ROOT))
    from benchmarks import released_losses

    depth = {128: 5, 256: 6}[args.res]
    real = torch.randn(REAL, 3, args.res, args.res, device="cuda")
    labels = torch.arange(CLASSES, device="cuda")

    def augment(images: Tensor, seed: int) -> Tensor:
        return utils.DiffAugment(images, args.dsa_strategy, seed=seed, param=args.dsa_param)

    def match(images: Tensor) -> None:
        network = utils.get_network("ConvNet", 3, CLASSES, (args.res, args.res), depth=depth, width=128, dist=False)
        network = network.to("cuda").train()
        if algorithm == "mtt":
            start = [p.detach() for p in network.parameters()]
            target = [p + 0.01 * torch.randn_like(p) for p in start]
            owners = labels.repeat_interleave(args.ipc)
            drawn = [torch.randperm(len(images), device="cuda")[:REAL] for _ in range(STUDENT_STEPS)]
            images.grad = released_losses.trajectory_gradient(
                network, start, target, images, owners, 0.01, drawn, augment
            )
            return
        parameters = list(network.parameters())

        def gradient(views: Tensor, label: Tensor, has_graph: bool) -> tuple[Tensor, ...]:
            loss = torch.nn.functional.cross_entropy(network(views), label.expand(len(views)))
            return torch.autograd.grad(loss, parameters, create_graph=has_graph)

        for label, synthetic in zip(labels, images.split(args.ipc), strict=True):
            seed = int(label)
            views, synthetic = augment(real, seed), augment(synthetic, seed)
            if algorithm == "dm":
                (network.embed(views).detach().mean(0) - network.embed(synthetic).mean(0)).square().sum().backward()
                continue
            halves = views.tensor_split(2) if repository == "ld3m" else (views,)
            found = [gradient(half, label, has_graph=repository == "ld3m") for half in halves]
            target = [torch.stack([g.detach() for g in gradients]).mean(0) for gradients in zip(*found, strict=True)]
            utils.match_loss(gradient(synthetic, label, has_graph=True), target, args).backward()

    return match


def main() -> None:
    repository, folder, settings = sys.argv[1], Path(sys.argv[2]).resolve(), json.loads(sys.argv[3])
    own, utils = modules_of(repository, folder)
    args = argparse.Namespace(
        res=settings["resolution"], ipc=settings["ipc"], ddim_steps=settings["steps"], sg_batch=10, device="cuda",
        layer=LAYERS[settings["algorithm"]], unconditional_guidance_scale=3.0, ldm_normalize=True, rand_g=False,
        ffhq=False, dis_metric="ours", dsa_strategy="color_crop_cutout_flip_scale_rotate",
        dsa_param=utils.ParamDiffAug(), space="wp", dataset="imagenet-a", special_gan=None, rand_gan_con=False,
        rand_gan_un=False, avg_w=False, rand_f=False, distributed=False, pix_init="noise", learn_g=False,
    )  # fmt: skip
    generate, push = generation(repository, own, args)
    match = matching(repository, settings["algorithm"], utils, args)

    def iteration() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        with torch.no_grad():
            images = generate()
        images = images.detach().requires_grad_()
        match(images)
        push(images)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    there = torch.cuda.memory_reserved()
    iteration()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times = [iteration() for _ in range(RUNS)]
    mib = (torch.cuda.max_memory_reserved() - there) / 2**20
    print(
        json.dumps({"baseline": statistics.median(times), "baseline_mib": mib, "spread": statistics.quantiles(times)})
    )


if __name__ == "__main__":
    main()
