"""One of several processes of `test_processes.py`: distillations one after the other, in a group."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import ld3m
from ld3m.evaluation import PROTOCOLS
from ld3m.runtime import processes

SHARED = {
    "prior": "random:tiny", "resolution": 16, "ipc": 2, "steps": 2, "iterations": 3, "width": 4, "real_batch": 6,
    "class_ids": (0, 1, 2, 3) * 3, "evaluate": "none", "progress": False, "device": "cpu", "lr": 0.1,
    "classes_in_flight": 2, "compile": False,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "expert_training_epochs": 2, "max_start_epoch": 2, "expert_epochs": 1}
CASES = {
    "dm": {"algorithm": "dm"},
    "dc": {"algorithm": "dc", "init": "kmeans"},
    "noise": {"algorithm": "dm", "init": "noise", "init_conditioning": "normal"},
    "autoencoder": {"algorithm": "dm", "space": "autoencoder"},
    "pixel": {"algorithm": "dm", "space": "pixel"},
    "glad": {
        "algorithm": "dm", "space": "glad", "prior": "random:stylegan-32", "resolution": 32, "class_ids": None,
        "ipc": 1, "iterations": 1, "classes_in_flight": 4,
    },
    "evaluated": {"algorithm": "dm", "evaluate": "quick", "iterations": 1},
    "mtt": {
        "algorithm": "mtt", "classes_in_flight": None, "student_steps": 2, "retain": 1.0, "micro_batch": 4,
        "decoder_batch": 4, **EXPERTS,
    },
}  # fmt: skip


def uneven(resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 12 classes of 3 to 8 images."""
    labels = torch.cat([torch.full((3 + k % 6,), k) for k in range(12)])
    images = torch.randint(256, (len(labels), 3, resolution, resolution), generator=torch.Generator().manual_seed(0))
    return images.to(torch.uint8), labels


def run(name: str, folder: Path, **more: object) -> None:
    """Make the run of a case."""
    settings = {**SHARED, **CASES[name], **more}
    PROTOCOLS["quick"] = replace(PROTOCOLS["quick"], networks=("ConvNet-w0.25",)).with_epochs(2)
    ld3m.distill(uneven(int(str(settings["resolution"]))), out=folder / name, **settings)


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a run that does not hold a time."""
    names = ("distilled.safetensors", "checkpoint.safetensors", "config.yaml", "images/*/*.png", "experts/*")
    files = sorted(path for name in names for path in folder.glob(name))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    assert processes.start(30)
    sent: dict[str, list[int]] = {}
    gathering = dist.all_gather

    def counted(parts: list[torch.Tensor], own: torch.Tensor, *rest: object, **options: object) -> object:
        volume.append(sum(part.nbytes for part in parts))
        return gathering(parts, own, *rest, **options)

    dist.all_gather = counted
    for name in names:
        volume: list[int] = []
        run(name, folder)
        sent[name] = volume
    if processes.is_main():
        (folder / "sent.json").write_text(json.dumps(sent))
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
