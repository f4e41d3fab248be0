"""Networks that are not this package's: factories of the user, by import path too, and those of timm.

A factory is called as factory(num_classes), with resolution= too where it takes that, and returns a new module with
fresh weights for images (B, 3, resolution, resolution).
"""

import importlib
import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ld3m.errors import ConfigError
from ld3m.networks.table import blueprint, build
from ld3m.runtime import seeds

Factory = Callable[..., nn.Module]
_drawing = threading.Lock()  # factories draw weights from torch's global generator


def is_own(name: str) -> bool:
    """Whether a name stands for a network outside of this package: package.module:factory or timm:NAME."""
    return ":" in name


class Zoo:
    """The networks of an evaluation by name: this package's, and factories.

    Args:
        networks: names, or factories by name; a name with a colon is imported here.
    """

    def __init__(self, networks: Sequence[str] | Mapping[str, Factory | str | None]) -> None:
        given: dict[str, Factory | str | None] = (
            dict(networks) if isinstance(networks, Mapping) else dict.fromkeys(networks)
        )
        self.names = tuple(given)
        self.factories: dict[str, Factory] = {}
        for name, factory in given.items():
            source = factory if factory is not None else name if is_own(name) else None
            if source is None:
                continue
            self.factories[name] = _imported(source) if isinstance(source, str) else source
            if not callable(self.factories[name]):
                raise ConfigError(
                    f"network {name!r} is given as a {type(factory).__name__}; give a function that makes one"
                )

    def build(
        self, name: str, *, num_classes: int, resolution: int, generator: torch.Generator | None = None
    ) -> nn.Module:
        """Build a network with fresh weights on the CPU, in train mode.

        Raises:
            ConfigError: an unknown name, a size that the network does not take, or a factory of something else.
        """
        if name not in self.factories:
            return build(name, num_classes=num_classes, resolution=resolution, generator=generator)
        seed = 0 if generator is None else generator.initial_seed()
        with _drawing, seeds.scoped_global_rng(seed, "weights", name):
            network = _called(name, self.factories[name], num_classes, resolution)
        network.draws_globally = True  # pyright: ignore[reportArgumentType] for all that is known of it
        return network.train()

    def check(self, name: str, *, num_classes: int, resolution: int) -> nn.Module:
        """Return a network to look at; raise ConfigError unless images of this size come out as that many logits."""
        if name not in self.factories:
            return blueprint(name, num_classes=num_classes, resolution=resolution)
        network = self.build(name, num_classes=num_classes, resolution=resolution)
        if self.build(name, num_classes=num_classes, resolution=resolution) is network:
            raise ConfigError(
                f"the factory of network {name!r} returned the same module twice; make a new one each time"
            )
        images = torch.zeros(2, 3, resolution, resolution)
        try:
            with torch.no_grad():
                logits: object = network.eval()(images)
        except Exception as error:  # whatever the user's own code raises
            raise ConfigError(
                f"network {name!r} does not take images {tuple(images.shape)}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
            raise ConfigError(f"network {name!r} should return logits {(2, num_classes)} for two images, got {shape}")
        return network

    def describe(self) -> dict[str, str]:
        """Return what tells the factories apart, by name: where they come from."""
        return {
            name: f"{getattr(factory, '__module__', '')}:{getattr(factory, '__qualname__', repr(type(factory)))}"
            for name, factory in self.factories.items()
        }


def _called(name: str, factory: Factory, num_classes: int, resolution: int) -> nn.Module:
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of what is written in C
        known = {}
    options: dict[str, Any] = {"resolution": resolution} if "resolution" in known else {}
    try:
        network: object = (
            factory(num_classes=num_classes, **options) if "num_classes" in known else factory(num_classes, **options)
        )
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's own code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"the factory of network {name!r} failed for {num_classes} classes: {reason}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"the factory of network {name!r} returned a {type(network).__name__}, not a torch.nn.Module")
    if not any(True for _ in network.parameters()):
        raise ConfigError(f"the factory of network {name!r} returned a module without weights; nothing can be trained")
    return network


def _imported(path: str) -> Factory:
    """Return the factory that package.module:factory or timm:NAME stands for."""
    module, _, attribute = path.partition(":")
    if module == "timm":
        return _of_timm(attribute)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or not re.fullmatch(r"[A-Za-z_][\w.]*", attribute):
        raise ConfigError(f"network {path!r} should read package.module:factory, or timm:NAME")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"network {path!r} cannot be imported: {error}; it is looked for as Python does, from the current folder "
            "with python -m ld3m"
        ) from error
    return found


def _of_timm(name: str) -> Factory:
    try:
        timm: Any = importlib.import_module("timm")  # an extra
    except ImportError as error:
        raise ConfigError(f"network 'timm:{name}' needs timm: pip install 'ld3m[timm]'") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network {name!r}; timm.list_models() lists them")

    def make(num_classes: int, resolution: int) -> nn.Module:
        options = {"num_classes": num_classes, "pretrained": False}
        try:
            return timm.create_model(name, img_size=resolution, **options)
        except TypeError:  # most take any size, and no such option
            return timm.create_model(name, **options)

    return make
