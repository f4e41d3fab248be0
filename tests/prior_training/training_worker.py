"""One of several processes of `test_processes.py`: a prior trained for a few steps."""

import sys
from pathlib import Path

import torch

from ld3m import data
from ld3m.prior_training import fit
from ld3m.prior_training.settings import PriorTraining
from ld3m.prior_training.train import train_prior
from ld3m.runtime import processes

SMALL = PriorTraining(
    resolution=16, ch=32, ch_mult=(1, 1), model_channels=32, channel_mult=(1,), attention_levels=(0,),
    num_heads=2, context_dim=8, first_stage_steps=20, first_stage_batch=9, steps=20, batch=9,
)  # fmt: skip


def train(out: Path) -> None:
    torch.set_num_threads(1)
    fit._LOG_EVERY = 1
    images = torch.randint(256, (36, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    dataset = data.load((images, torch.arange(36) % 3), resolution=16)
    train_prior(dataset, out, SMALL, device="cpu", progress=False)


if __name__ == "__main__":
    assert processes.start(30)
    train(Path(sys.argv[1]))
    processes.stop()
