"""Expert trajectories for trajectory matching: networks trained on real data, their weights kept after every epoch.

An expert is one safetensors file, `expert-00000.safetensors`, with tensors named "{epoch:03d}/{parameter}" for epochs 0
(fresh weights) to `epochs`, and the settings it was trained with as metadata.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ld3m import networks
from ld3m.config import check_above_zero
from ld3m.data import Dataset
from ld3m.errors import CheckpointError, ConfigError, InputError, NumericsError
from ld3m.matching import dsa
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import resolve_device
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.reading import clear_read_errors, shown, shown_text
from ld3m.runtime.storage import metadata_of, owning, require_writable, save_tensors, sweep

logger = logging.getLogger(__name__)
_AGAIN = "delete the file and train it again"


def train_experts(
    dataset: Dataset,
    folder: str | Path,
    *,
    network: str = "ConvNet",
    width: int | None = None,
    num_experts: int,
    epochs: int,
    lr: float = 0.01,
    batch_size: int = 256,
    augment: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[Path]:
    """Train experts by plain SGD (no momentum, no weight decay) and store each as soon as it is done.

    Experts that the folder has already, from the same settings, are kept; so a broken-off run goes on where it was.

    Args:
        network, width: as in `networks.build`.
        augment: DSA on every batch, with parameters for each image.
        progress: a bar on stderr, where that is a terminal.

    Returns:
        The files, one for each expert.

    Raises:
        ConfigError: the folder has experts from other settings.
        NumericsError: an expert diverged; those before it are stored.
    """
    check_above_zero(num_experts=num_experts, epochs=epochs, batch_size=batch_size, lr=lr)
    require_writable(Path(folder), "choose another folder for the experts")
    device = resolve_device(device)
    size: dict[str, Any] = {"num_classes": dataset.train.num_classes, "resolution": dataset.resolution}
    plan = networks.blueprint(network, width=width, **size)
    recipe = {
        "data": dataset.name, "fingerprint": dataset.fingerprint,
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "augment": augment, "seed": seed,
    }  # fmt: skip
    metadata = _describe(plan, network, **size) | {key: str(value) for key, value in recipe.items()}

    files = [Path(folder) / f"expert-{index:05d}.safetensors" for index in range(num_experts)]

    with owning(Path(folder)) if processes.is_main() else contextlib.nullcontext():
        missing = processes.from_main(lambda: _missing(Path(folder), files), "look for experts")
        for file in files:
            if file.exists():
                _check(file, plan, metadata)
        logger.info("%d of %d experts are in %s", num_experts - len(missing), num_experts, folder)
        own = processes.share(missing, processes.rank(), processes.world_size())
        with progress_bar(name="experts", total=len(own) * epochs, unit="epoch", show=progress) as bar:
            for index in own:
                generator = seeds.generator(seed, "expert", index)
                expert = networks.build(network, width=width, generator=generator, **size).to(device)
                tensors = _snapshot(expert, 0)
                with seeds.scoped_global_rng(seed, "expert dropout", index):
                    for epoch in range(1, epochs + 1):
                        loss = _train_epoch(expert, dataset, generator, lr=lr, batch_size=batch_size, augment=augment)
                        tensors |= _snapshot(expert, epoch)
                        bar.set_postfix(expert=index, loss=f"{loss:.3f}", refresh=False)
                        bar.update()
                _require_finite(expert, index, lr)
                save_tensors(files[index], tensors, metadata)
        processes.gather(None, "train their experts")
    return files


@dataclass(frozen=True)
class Experts:
    """Stored experts of one network.

    Args:
        files: one for each expert.
        names: the network's parameters, in its order.
        epochs: that every expert has.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    epochs: int

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Return a fingerprint of the weights that every expert ended with, so that little is read."""
        ends: list[Tensor] = []
        for path in self.files:
            with _opened(path) as file:
                ends += [file.get_tensor(f"{self.epochs:03d}/{name}") for name in self.names]
        return fingerprint(ends, self.epochs)

    def pair(self, expert: int, start_epoch: int, expert_epochs: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return an expert's parameters at an epoch and `expert_epochs` later; nothing else is read from its file."""
        last = start_epoch + expert_epochs
        if not (0 <= expert < len(self) and 0 <= start_epoch < last <= self.epochs):
            raise InputError(
                f"there are experts 0 to {len(self) - 1} with epochs 0 to {self.epochs}, "
                f"got expert {expert}, epochs {start_epoch} to {last}"
            )
        with _opened(self.files[expert]) as file:
            start, target = ([file.get_tensor(f"{at:03d}/{name}") for name in self.names] for at in (start_epoch, last))
        if not all(t.is_floating_point() and bool(t.isfinite().all()) for t in (*start, *target)):
            raise CheckpointError(f"{self.files[expert]} holds values that are no finite numbers; {_AGAIN}")
        return start, target


def load_experts(
    folder: str | Path,
    *,
    network: str = "ConvNet",
    width: int | None = None,
    num_classes: int,
    resolution: int,
    epochs: int = 1,
    fingerprint: str | None = None,
) -> Experts:
    """Open the experts of a folder, which must be of this network; tensors are read when asked for.

    Args:
        network, width, num_classes, resolution: as in `networks.build`.
        epochs: that will be needed, the last start epoch plus the epochs to match.
        fingerprint: of the data they have to be trained on; any data when None.

    Raises:
        CheckpointError: no folder, no expert in it, or a damaged file.
        ConfigError: experts of another network, size or data, or with fewer epochs.
    """
    files = sorted(Path(folder).glob("expert-*.safetensors"))
    if not files:
        raise CheckpointError(f"no expert-*.safetensors in {folder}; train some with `ld3m experts`, or check the path")
    plan = networks.blueprint(network, width=width, num_classes=num_classes, resolution=resolution)
    wanted = _describe(plan, network, num_classes=num_classes, resolution=resolution)
    wanted |= {"fingerprint": fingerprint} if fingerprint else {}
    fewest, shortest = min((_check(file, plan, wanted), file) for file in files)
    if fewest < epochs:
        raise ConfigError(
            f"{epochs} epochs of every expert are needed, but {shortest} has {fewest}; "
            "train experts for longer, or lower the start epoch or the epochs to match"
        )
    return Experts(tuple(files), tuple(name for name, _ in plan.named_parameters()), fewest)


def _train_epoch(
    network: nn.Module, dataset: Dataset, generator: torch.Generator, *, lr: float, batch_size: int, augment: bool
) -> float:
    """Run one epoch of SGD in place; return the mean loss over batches."""
    device, model = next(network.parameters()).device, networks.fused(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    losses = []
    for indices in torch.randperm(len(dataset.train), generator=generator).split(batch_size):
        images = dataset.normalize(dataset.train.batch(indices, device))
        if augment:
            images = dsa.augment(images, generator)
        loss = F.cross_entropy(model(images), dataset.train.labels[indices].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _missing(folder: Path, files: list[Path]) -> list[int]:
    """Return the numbers of the experts that are still to be trained; what a killed training left is removed."""
    sweep(folder)
    return [index for index, file in enumerate(files) if not file.exists()]


def _require_finite(expert: nn.Module, index: int, lr: float) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in expert.parameters()):
        raise NumericsError(f"expert {index} diverged: its weights are not finite; lower lr, which is {lr}")


def _snapshot(network: nn.Module, epoch: int) -> dict[str, Tensor]:
    """Return copies on the CPU: without them all epochs would be the same memory."""
    return {f"{epoch:03d}/{name}": p.detach().to("cpu", copy=True) for name, p in network.named_parameters()}


def _describe(plan: nn.Module, network: str, **size: int) -> dict[str, str]:
    """Return what must agree for experts to fit a network; norms are always the default ones."""
    return {"network": network, "width": str(getattr(plan, "width", "-"))} | {k: str(v) for k, v in size.items()}


def _check(path: Path, plan: nn.Module, wanted: dict[str, str]) -> int:
    """Return the number of epochs of an expert, after comparing its settings and the shapes of its tensors."""
    with _opened(path) as file:
        found = metadata_of(file, path)
        different = [f"{k} is {found.get(k, 'not said')}, asked {v}" for k, v in wanted.items() if found.get(k) != v]
        if different:
            raise ConfigError(
                f"{path} is of other settings: {'; '.join(different)}; choose another folder, or the settings it is of"
            )
        if not found.get("epochs", "").isdecimal():
            raise CheckpointError(
                f"{path} should say how many epochs it has, got {shown(found.get('epochs'))}; {_AGAIN}"
            )
        epochs, stored = int(found["epochs"]), set(file.keys())
        for epoch in range(epochs + 1):
            for name, parameter in plan.named_parameters():
                key = f"{epoch:03d}/{name}"
                shape = tuple(file.get_slice(key).get_shape()) if key in stored else None
                if shape != tuple(parameter.shape):
                    raise CheckpointError(
                        f"{path} should have {key} of shape {tuple(parameter.shape)}, "
                        f"and has {'no such tensor' if shape is None else shape}; delete the file and train it again"
                    )
    return epochs


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with clear_read_errors(path):
            open(path, "rb").close()  # safetensors calls every failure "No such file"
            with safe_open(path, framework="pt") as file:
                yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({shown_text(str(error))}); {_AGAIN}") from error
