"""The memory plan of a distillation: what is kept, evaluated and decoded at once, and the budget it has to fit."""

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch

from ld3m.errors import ConfigError
from ld3m.runtime import processes
from ld3m.runtime.reading import shown

if TYPE_CHECKING:
    from ld3m.memory.diffusion import DiffusionPlanner
    from ld3m.memory.glad import GladPlanner
    from ld3m.memory.pixel import PixelPlanner

_UNITS = ("", "K", "M", "G", "T")

# Images worth evaluating together: with fewer, a call of the denoiser costs more an image. On a CPU that begins below
# about ten (twenty rows with guidance); a GPU is filled by some hundred rows.
_IMAGES_IN_FLIGHT, _IMAGES_ON_GPU = 16, 64

# Libraries of a GPU count a map's elements in 32 bits, or are slow where they need more; smaller maps lose nothing.
_MAP_ELEMENTS = 2**30
_SMALL_CHUNK = 16  # smaller chunks of the real batch are taken only where nothing else fits

# Share of the device's memory that may be taken by default; that of a CPU is also the system's and other programs'.
_GPU_SHARE, _CPU_SHARE = 0.8, 0.25


@dataclass(frozen=True)
class Plan:
    """The images and activations held at once.

    Args:
        retain: fraction of the chain's evaluations whose activations are kept, in hundredths.
        micro_batch: images a call of the denoiser.
        classes_in_flight: classes rendered together and matched in one pass.
        decoder_batch: images decoded at a time, their activations recomputed on the way back; None decodes all images
            in flight at once and keeps them.
        real_chunk: real images a call of the matched network; None takes them whole.
        peak_bytes: predicted for everything on the device at once, weights included.
        saved_bytes: predicted for what autograd keeps of chain and decoder, at most.
        slow_down: predicted time of chain and decoder over that of keeping everything.
        budget_bytes: what was allowed.
    """

    retain: float
    micro_batch: int
    classes_in_flight: int
    decoder_batch: int | None
    real_chunk: int | None
    peak_bytes: int = 0
    saved_bytes: int = 0
    slow_down: float = 1.0
    budget_bytes: int = 0
    planner: "DiffusionPlanner | GladPlanner | PixelPlanner | None" = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        decoder, real = self.decoder_batch or "all", self.real_chunk or "all"
        kept = "all activations are kept, which is fastest"
        if self.retain < 1 or self.decoder_batch is not None:
            kept = (
                f"{100 * self.retain:.0f} % of the chain's activations are kept, the others computed again, "
                f"{self.slow_down:.2f} times as slow as keeping all"
            )
        return (
            f"{size_text(self.peak_bytes)} at most of the {size_text(self.budget_bytes)} allowed; {kept}. At once: "
            f"{self.classes_in_flight} classes, {self.micro_batch} images in the denoiser, {decoder} in the decoder, "
            f"{real} real images"
        )

    def _repr_html_(self) -> str:
        return f"<p>Memory: {self}.</p>"

    def facts(self) -> dict[str, object]:
        """Return everything by name, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "planner"}

    def cut(self, *, classes: int | None, images: int | None, decoded: int | None, real: int | None) -> "Plan":
        """Return the plan with at most so many classes, images in the denoiser and in the decoder, and real images."""
        classes = min(classes or self.classes_in_flight, self.classes_in_flight)
        sizes = [(self.micro_batch, images), (self.decoder_batch, decoded), (self.real_chunk, real)]
        batch, decoder, chunk = (min((size for size in pair if size), default=None) for pair in sizes)
        return replace(self, classes_in_flight=classes, micro_batch=batch or 1, decoder_batch=decoder, real_chunk=chunk)

    def within(self, budget: int) -> "Plan":
        """Return the plan for the same work and another budget; what to retain is free to change."""
        if self.planner is None:
            raise ConfigError("this plan was made by hand: there is no other one for the same work")
        return replace(self.planner, retain=None).plan(budget)

    def smaller(self) -> "Plan | None":
        """Return a plan for 0.7 times this one's peak, or the smallest there is; None when that is this one, or when no
        planner made it."""
        if self.planner is None:
            return None
        smallest = replace(self.planner, retain=None).smallest
        if self.peak_bytes <= smallest.peak_bytes:
            return None
        return self.within(max(int(0.7 * self.peak_bytes), smallest.peak_bytes))


def parse_bytes(text: str | int) -> int:
    """Read "8GB", "500 MB", "2GiB" or a number of bytes."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    number, unit, is_binary = match.groups() if match else ("0", "", "")
    count = int(float(number) * (1024 if is_binary else 1000) ** _UNITS.index(unit.upper()))
    if count < 1:
        raise ConfigError(f'memory_budget is a size such as "8GB" or a number of bytes, got {shown(text)}')
    return count


def total_memory(device: torch.device) -> int:
    """Return the bytes a device has in all; what is free at the moment would make equal runs differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def planned(make: Callable[[], Plan | None], what: str) -> Plan | None:
    """Return the plan that the main process makes, in all; it alone keeps the planner.

    Args:
        what: the processes do meanwhile, in words.
    """
    own: list[Plan | None] = []

    def work() -> Plan | None:
        own.append(make())
        return None if own[0] is None else replace(own[0], planner=None)

    plan = processes.from_main(work, what)
    return own[0] if own else plan


def budget_of(given: str | int | None, device: torch.device) -> int:
    """Return the bytes that may be taken: a share of the device's where nobody says."""
    if given is not None:
        return parse_bytes(given)
    share = _GPU_SHARE if device.type == "cuda" else _CPU_SHARE / processes.num_local()
    return int(share * total_memory(device))


def images_in_flight(device: torch.device) -> int:
    """Return how many images are evaluated together at most."""
    return _IMAGES_ON_GPU if device.type == "cuda" else _IMAGES_IN_FLIGHT


def even_size(total: int, most: int) -> int:
    """Return the size of the fewest equal groups, each at most `most` or one, that `total` can be cut into."""
    return math.ceil(total / math.ceil(total / min(total, max(1, most))))


def real_chunks(size: int, real_map: int, *, only_large: bool) -> Iterator[int | None]:
    """Yield how many of `size` real images a call of the network may take: None for all, then halves down to one.

    Args:
        real_map: elements of the network's largest map of an image, of which a call's are bounded; where all images
            have more, their largest even part comes first.
        only_large: whether to end before chunks that are small.
    """
    most = max(1, _MAP_ELEMENTS // real_map)
    if size <= most:
        yield None
    else:
        yield (size := even_size(size, most))
    while size > (2 * _SMALL_CHUNK if only_large else 1):
        size = math.ceil(size / 2)
        yield size


def size_text(count: int) -> str:
    """Say a number of bytes in GB, or below 0.1 GB in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
