"""The teacher of soft labels: a network trained on the real images, as one safetensors file from which no code runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ld3m import networks
from ld3m.data import Dataset
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.storage import load_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network and what it was trained on.

    Args:
        network: in eval mode.
        kind: its name in `ld3m.networks`.
        class_names: in the order of its answers.
        mean, std: (3,), by which its images in [0, 1] are normalised.
        data: the name of its data set.
        fingerprint: of the data set, which says what split it was trained on.
        about: how it was trained and how well it does, for the report.
    """

    network: nn.Module
    kind: str
    class_names: tuple[str, ...]
    resolution: int
    mean: Tensor
    std: Tensor
    data: str
    fingerprint: str
    about: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        """A fingerprint of all that its answers follow from."""
        return fingerprint((*self.network.state_dict().values(), self.mean, self.std), self.kind)

    @cached_property
    def name(self) -> str:
        """The name in the rows: network, data, and the start of a digest of its weights."""
        return f"{self.kind} of {self.data} ({fingerprint(self.network.state_dict().values())[:8]})"

    def to(self, device: torch.device) -> "Teacher":
        """Move the network there, and return self."""
        self.network.to(device)
        return self

    def require_fit(self, data: Dataset) -> None:
        """Raise ConfigError unless it was trained on this data: classes, their order, resolution and split."""
        count, wanted = len(self.class_names), len(data.class_names)
        if count != wanted:
            raise ConfigError(f"the teacher knows {count} classes, data {data.name!r} has {wanted}; {_train(data)}")
        if set(self.class_names) != set(data.class_names):
            alien = next(name for name in self.class_names if name not in data.class_names)
            raise ConfigError(f"the teacher knows class {alien!r}, which data {data.name!r} has not; {_train(data)}")
        if self.class_names != data.class_names:
            pairs = zip(self.class_names, data.class_names, strict=True)
            label, (own, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
            raise ConfigError(
                f"the teacher has the classes in another order than data {data.name!r}: label {label} is {own!r} to it "
                f"and {other!r} there; {_train(data)}"
            )
        if self.resolution != data.resolution:
            raise ConfigError(
                f"the teacher is for {self.resolution} px, the images have {data.resolution}; {_train(data)}"
            )
        if self.fingerprint != data.fingerprint:
            raise ConfigError(
                f"the teacher was trained on other images than the training split of data {data.name!r}, perhaps on "
                f"some of its test images; {_train(data)}"
            )

    @torch.no_grad()
    def logits(self, images: Tensor, data: Dataset) -> Tensor:
        """Return its answers (B, classes) to images (B, 3, H, H) normalised by the statistics of `data`."""
        ratio, offset = data.std / self.std, (data.mean - self.mean) / self.std
        own = images * ratio.to(images)[:, None, None] + offset.to(images)[:, None, None]
        return networks.fused(self.network)(own)

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; return its path."""
        own = {name: getattr(self, name) for name in ("kind", "class_names", "resolution", "data", "fingerprint")}
        own |= {"mean": self.mean.tolist(), "std": self.std.tolist(), "about": dict(self.about)}
        save_tensors(Path(path), self.network.state_dict(), {"teacher": json.dumps(own, sort_keys=True)})
        return Path(path)


def load_teacher(path: str | Path) -> Teacher:
    """Load what `Teacher.save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of something else.
    """
    tensors, metadata = load_tensors(Path(path))
    if "teacher" not in metadata:
        raise CheckpointError(f"{path} is not a teacher's file; make one with `ld3m teacher`")
    try:
        own = json.loads(metadata["teacher"])
        network = networks.blueprint(own["kind"], num_classes=len(own["class_names"]), resolution=own["resolution"])
        network.load_state_dict(tensors, assign=True)
        mean, std = (torch.tensor(own[name], dtype=torch.float32) for name in ("mean", "std"))
        size = own["kind"], tuple(own["class_names"]), own["resolution"]
        return Teacher(
            network.eval().requires_grad_(False), *size, mean, std, own["data"], own["fingerprint"], own["about"]
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"{path} is not a teacher ({reason}); train one with `ld3m teacher`") from error


def _train(data: Dataset) -> str:
    return (
        f"train one on it: ld3m teacher DATA --resolution {data.resolution} --out FILE, with the --holdout of the run "
        "where it had one"
    )
