"""Inversion through the embedded prior: how well images come back, and how normal the inverted latents are.

    python benchmarks/inversion.py [--out benchmarks/results]

reconstruction: relative L2 error of the latents after inversion to timestep 600 and sampling back with the same
guidance, by the number of steps, on 2 training images per class; "published" is `compat="d3hr"`.
normality: inverted latents of 50 training images per class at every point of a grid of 25, by the guidance of the
inversion, and the same latents noised with fresh noise. Deviations are those from the class's mean, per coordinate;
skewness, excess kurtosis and the Kolmogorov-Smirnov distance to N(0, 1) are those of latents standardised by class, per
coordinate over all classes. What a Gaussian sample of the same size gives stands beside them.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

import ld3m
from ld3m.chain import inversion_states
from ld3m.data import load
from ld3m.priors import Prior
from ld3m.runs import pictures
from ld3m.runs.facts import versions
from ld3m.runtime import seeds

STEPS, LEVEL, RECONSTRUCTED = (10, 20, 50, 100), 600, 2
POINTS, PER_CLASS = 25, 50
GUIDANCE = (1.0, 1.5, 4.0)
MICRO_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    started = time.process_time()
    prior = ld3m.load_prior("builtin")
    latents, conditioning = real_latents(prior)  # (classes, PER_CLASS, c, h, w)

    few = latents[:, :RECONSTRUCTED].flatten(0, 1), conditioning[:, :RECONSTRUCTED].flatten(0, 1)
    errors = {f"guidance {g:g}, {start}": {} for g in (1.0, 4.0) for start in ("consistent", "published")}
    for steps in STEPS:
        for guidance_scale in (1.0, 4.0):
            for start, error in reconstruction(prior, *few, steps, guidance_scale).items():
                errors[f"guidance {guidance_scale:g}, {start}"][steps] = round(error, 5)
        print(steps, {name: error[steps] for name, error in errors.items()}, flush=True)
    chart = pictures.line_chart(
        {name: list(error.items()) for name, error in errors.items()},
        f"Relative error after inversion to timestep {LEVEL} and back, by steps (logarithmic)",
        log=True,
    )
    pictures.save_png(out / "inversion-reconstruction.png", chart)

    draw = seeds.generator(0, "inversion")
    normality = {"noised": noised_normality(prior, latents, draw)}
    for guidance_scale in GUIDANCE:
        name = f"guidance {guidance_scale:g}"
        normality[name] = inverted_normality(prior, latents, conditioning, guidance_scale)
        print(name, normality[name][LEVEL], flush=True)
    gaussian = measure(torch.randn(latents.shape, generator=draw))
    pictures.save_png(out / "inversion-normality.png", normality_chart(normality, gaussian))

    result = {
        "command": "python benchmarks/inversion.py",
        "prior": prior.name,
        "reconstruction": {"timestep": LEVEL, "images": len(few[0]), "relative_error_by_steps": errors},
        "normality": {
            "images_per_class": PER_CLASS,
            "steps": POINTS,
            "gaussian_sample": gaussian,
            "by_timestep": normality,
        },
        "cpu_seconds": round(time.process_time() - started),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    (out / "inversion.json").write_text(json.dumps(result, indent=1) + "\n")


def real_latents(prior: Prior) -> tuple[Tensor, Tensor]:
    """Encode the first training images of every class; return them and their class embeddings, by class."""
    split = load("builtin", resolution=32).train
    rows = torch.stack([(split.labels == k).nonzero().flatten()[:PER_CLASS] for k in range(prior.num_classes)])
    latents = torch.cat([prior.encode(split.batch(row) * 2 - 1) for row in rows])
    conditioning = prior.embed(split.labels[rows.flatten()])
    return latents.unflatten(0, rows.shape), conditioning.unflatten(0, rows.shape)


def reconstruction(
    prior: Prior, latents: Tensor, conditioning: Tensor, steps: int, guidance_scale: float
) -> dict[str, float]:
    state = ld3m.invert(
        prior, latents, conditioning, steps=steps, stop=LEVEL * steps // 1000, guidance_scale=guidance_scale
    )
    errors = {}
    for name, compat in (("consistent", None), ("published", "d3hr")):
        back = ld3m.sample(prior, state, conditioning, guidance_scale=guidance_scale, compat=compat)
        errors[name] = ((back - latents).norm() / latents.norm()).item()
    return errors


def inverted_normality(
    prior: Prior, latents: Tensor, conditioning: Tensor, guidance_scale: float
) -> dict[int, dict[str, float]]:
    states = inversion_states(
        prior,
        latents.flatten(0, 1),
        conditioning.flatten(0, 1),
        steps=POINTS,
        stop=POINTS - 1,
        guidance_scale=guidance_scale,
        micro_batch=MICRO_BATCH,
    )
    return {state.timestep: measure(state.latents.view_as(latents)) for state in states}


def noised_normality(prior: Prior, latents: Tensor, draw: torch.Generator) -> dict[int, dict[str, float]]:
    measures = {}
    for timestep in range(0, 1000, 1000 // POINTS):
        alpha = prior.alphas_cumprod[timestep].item()
        noise = torch.randn(latents.shape, generator=draw)
        measures[timestep] = measure(alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise)
    return measures


def measure(latents: Tensor) -> dict[str, float]:
    """Measure (classes, images, ...): root mean square, means and mean magnitudes over coordinates."""
    x = latents.flatten(2).double()  # (classes, images, D)
    deviation = x.std(1, keepdim=True)
    z = ((x - x.mean(1, keepdim=True)) / deviation).flatten(0, 1).sort(0).values  # (N, D), every coordinate by itself
    below = torch.special.ndtr(z)
    ranks = torch.arange(len(z) + 1, dtype=z.dtype)[:, None] / len(z)
    distance = torch.maximum((below - ranks[:-1]).abs(), (below - ranks[1:]).abs()).amax(0)
    return {
        "std": round(deviation.square().mean().sqrt().item(), 4),
        "skewness": round(z.pow(3).mean(0).abs().mean().item(), 4),
        "excess_kurtosis": round(z.pow(4).mean(0).sub(3).mean().item(), 4),
        "ks_distance": round(distance.mean().item(), 4),
    }


def normality_chart(normality: dict[str, dict[int, dict[str, float]]], gaussian: dict[str, float]):
    titles = {
        "std": "Standard deviation within a class",
        "skewness": "Magnitude of the skewness",
        "excess_kurtosis": "Excess kurtosis",
        "ks_distance": "Kolmogorov-Smirnov distance to N(0, 1)",
    }
    panels = []
    for key, title in titles.items():
        series = {name: [(t, values[key]) for t, values in levels.items()] for name, levels in normality.items()}
        panels.append(pictures.line_chart(series, f"{title}, by timestep (Gaussian sample: {gaussian[key]:.3g})"))
    return pictures.stack(panels)


if __name__ == "__main__":
    main()
