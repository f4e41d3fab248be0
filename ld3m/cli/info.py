"""`ld3m info`."""

from dataclasses import dataclass

from ld3m.cli.commands import Command
from ld3m.config import DistillConfig, build, one_of, resolve

_SETTINGS = ("prior", "ipc", "resolution", "algorithm", "steps", "network", "real_batch", "dtype")


@dataclass(frozen=True)
class InfoCommand(Command):
    """Print versions, devices and names; with --budget, the memory plan of a distillation."""

    budget: str | None = None
    """Memory on the device, such as "8GB": print the plan for it without running."""
    prior: str = "builtin"
    """Prior of the plan."""
    resolution: int | None = None
    """Image side in pixels; the prior's own when not given."""
    steps: int | None = None
    """Steps of the chain."""
    ipc: int = 1
    """Images per class."""
    num_classes: int = 10
    """Classes."""
    algorithm: str = "dc"
    """dc, dm or mtt."""
    network: str = "ConvNet"
    """Network that is matched."""
    real_batch: int | None = None
    """Real images per class and iteration."""
    dtype: str | None = None
    """Precision of the prior's weights."""

    def execute(self) -> None:
        settings = build({name: getattr(self, name) for name in _SETTINGS}, DistillConfig())  # also without a budget
        from ld3m.matching import LOSSES

        one_of(settings.algorithm, "algorithm", tuple(LOSSES))
        lines = _facts()
        if self.budget is not None:
            lines["plan"] = self._plan(settings, self.budget)
        for name, text in lines.items():
            print(f"{name:10} {text}")

    def _plan(self, settings: DistillConfig, budget: str) -> str:
        from ld3m.memory.costs import Workload
        from ld3m.memory.diffusion import plan_work
        from ld3m.priors import ExecutionConfig, load_prior

        prior = load_prior(self.prior, device="meta", dtype=settings.dtype or "float32").set_execution(
            ExecutionConfig()
        )
        config = resolve(settings, prior.native_resolution)
        work = Workload.of(config, has_chain=True, num_classes=self.num_classes, real_batch=config.real_batch)
        return str(plan_work(prior, work, budget, None))


def _facts() -> dict[str, str]:
    """Return a line of text for each kind of thing that is here."""
    import torch

    from ld3m import networks
    from ld3m.data.cache import describe as describe_decoded
    from ld3m.evaluation import PROTOCOLS
    from ld3m.ops.backends import describe
    from ld3m.priors import NAMES
    from ld3m.priors.stylegan.loading import NAMES as GENERATORS
    from ld3m.runs.facts import versions

    cuda = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "devices": ", ".join([f"cpu ({torch.get_num_threads()} threads)", *cuda]),
        "backends": "; ".join(f"{name}: {text}" for name, text in describe().items()),
        "priors": ", ".join(NAMES) + ", a CompVis or DiT checkpoint, a diffusers folder, a hub id",
        "generators": ", ".join(GENERATORS) + ", a .safetensors file (space glad)",
        "networks": ", ".join(networks.NETWORKS),
        "protocols": ", ".join(PROTOCOLS),
        "decoded": describe_decoded(),
    }
