"""Calls without a type error."""

import torch

import ld3m

images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
ld3m.distill(ipc=2)
ld3m.distill((images, labels), ipc=2, prior=ld3m.load_prior("builtin"), device=torch.device("cpu"), dtype="bfloat16")
ld3m.distill("folder", out="run", learn=("latents",), lr=0.1, init="folder of a set", class_ids=[3, 1])
ld3m.sample_dataset(selector="group", steps=20, weights=(1.0, 1.0, 0.5))
ld3m.select("folder", by="rded", ipc=10, teacher="teacher.safetensors", tiles=2, resolution=64)
accuracy: str = ld3m.evaluate(ld3m.load("run"), "builtin", protocol="quick", repeats=1, dtype=torch.bfloat16).table()
