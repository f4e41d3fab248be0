"""Train a prior of one's own, seconds long, and distil through its reverse chain.

python examples/own_prior.py

Real priors take the defaults of `PriorTraining`, or more steps; this one shows the way alone. Writes prior/ and
runs/own-prior in the current folder.
"""

from pathlib import Path

import torch

import ld3m
from ld3m.data import load
from ld3m.prior_training.settings import PriorTraining
from ld3m.prior_training.train import train_prior

SECONDS_LONG = PriorTraining(
    resolution=16,
    first_stage_steps=10,
    first_stage_batch=16,
    steps=10,
    batch=16,
    ch_mult=(1, 2),
    model_channels=32,
    channel_mult=(1,),
    attention_levels=(0,),
    context_dim=32,
)

if __name__ == "__main__":
    everything = load("builtin", resolution=16)
    some = torch.arange(0, len(everything.train), 20)
    data = everything.train.batch(some), everything.train.labels[some]  # images (N, 3, 16, 16) in [0, 1], labels (N,)
    dataset, out = load(data, resolution=16), Path("prior")
    folder = train_prior(dataset, out, SECONDS_LONG, resume=out.exists(), progress=False)
    result = ld3m.distill(
        data,
        prior=folder,
        resolution=16,
        algorithm="dm",
        iterations=5,
        steps=4,
        width=16,
        real_batch=8,
        evaluate="none",
        out="runs/own-prior",
        overwrite=True,
        progress=False,
    )
    print(f"images {tuple(result.images.shape)} through {folder}, in {result.path}")
