"""What all rooms share: the reference tensors' folder, the error measure, and hypothesis with fixed seeds."""

import collections
import functools
import gc
import importlib.util
import logging
import os
import random
import re
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ld3m
from ld3m import cli
from ld3m.memory import costs
from ld3m.memory import diffusion as planning
from ld3m.ops import backends
from ld3m.priors import load_stylegan
from ld3m.runs import pictures
from ld3m.runtime import devices

hypothesis.settings.register_profile("ld3m", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ld3m")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> None:
    """Seed the generators that all share by the fixture's name: what it draws is the same in any order of tests."""
    _seed(f"{fixturedef.argname} {request.param_index}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Likewise by the test's name."""
    _seed(item.name)


def _seed(name: str) -> None:
    random.seed(name), torch.manual_seed(zlib.crc32(name.encode()))


def pytest_collection_finish() -> None:
    """Keep what is imported out of the garbage collections to come, each of which takes half a second with it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def log_level() -> None:
    """Undo what the command line sets for its process, so that tests see the same log in any order."""
    logging.getLogger("ld3m").setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def default_device() -> Iterator[None]:
    """Run on the CPU what names no device: bytes repeat there, and a prior that tests share is not moved away.

    Tests meant for a GPU say so, and so do command lines in processes of their own with the CPU.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "default_device", lambda: "cpu")
        yield


_COUNTED: dict[str, costs.Costs] = {}


@pytest.fixture(autouse=True)
def costs_are_counted_once(monkeypatch) -> None:
    """Plan with the costs of an equal prior met before: they follow from shapes, and counting is half of a small run.

    The planner's own tests count anew.
    """

    def count(prior: "ld3m.priors.Prior", work: costs.Workload) -> costs.Costs:
        shapes = [(t.shape, t.dtype, t.device) for m in prior.modules() for t in (*m.parameters(), *m.buffers())]
        networks = [(str(module), getattr(module, "config", None)) for module in prior.modules()]
        key = repr([type(prior), shapes, networks, prior.frozen.execution, backends.FORCED, work])
        if key not in _COUNTED:
            _COUNTED[key] = costs.count_costs(prior, work)
        return _COUNTED[key]

    monkeypatch.setattr(planning, "count_costs", count)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference tensors; LD3M_REFERENCE names another one with the same files."""
    return Path(os.environ.get("LD3M_REFERENCE", Path(__file__).parent / "reference"))


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Largest absolute error over largest absolute reference value, or as it is where the reference is zero."""

    def measure(got: Tensor, want: Tensor) -> float:
        assert got.shape == want.shape
        got, want = got.detach().double(), want.detach().double()
        error, scale = (float(x.abs().max()) for x in (got - want, want))
        return error / scale if scale else error

    return measure


@pytest.fixture(scope="session")
def reference_prior(reference) -> Callable:
    """Load `cin`, `ffhq` or `kl` of the reference priors in a dtype, once a session; tests leave it unchanged."""

    @functools.cache
    def load(name: str, dtype: torch.dtype = torch.float64) -> "ld3m.priors.Prior":
        path = reference / f"{name}_tiny.ckpt"
        return ld3m.load_prior(path, config=path.with_suffix(".yaml"), dtype=dtype)

    return load


@pytest.fixture(scope="session")
def d3hr(reference) -> dict[str, Tensor]:
    """What the authors' D3HR computes with tiny diffusion transformers, by the names of the reference."""
    return load_file(reference / "d3hr_tiny.safetensors")


@pytest.fixture(scope="session")
def dit_folder(d3hr, tmp_path_factory) -> Path:
    """The tiny DiTs `official.pt` and `toy.pt`, and the first one again as the diffusers pipeline they lie in."""
    import diffusers  # slow, and most tests need none

    folder = tmp_path_factory.mktemp("dit")
    weights = {key.removeprefix("w/"): value for key, value in d3hr.items() if key.startswith("w/")}
    torch.save(weights, folder / "official.pt")
    torch.save({key: d3hr[f"toy_w/{key}"] for key in weights}, folder / "toy.pt")
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    transformer.load_state_dict({key: _official(key, weights) for key in transformer.state_dict()})
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    first_stage = ld3m.load_prior("random:dit-tiny").first_stage
    diffusers.DiTPipeline(transformer, first_stage, scheduler).save_pretrained(folder)
    return folder


_OFFICIAL = {
    r"pos_embed\.proj": "x_embedder.proj",
    r".*timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r".*timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r".*class_embedder": "y_embedder",
    r"transformer_blocks\.(\d)\.norm1\.linear": r"blocks.\1.adaLN_modulation.1",
    r"transformer_blocks\.(\d)\.attn1\.to_[qkv]": r"blocks.\1.attn.qkv",
    r"transformer_blocks\.(\d)\.attn1\.to_out\.0": r"blocks.\1.attn.proj",
    r"transformer_blocks\.(\d)\.ff\.net\.0\.proj": r"blocks.\1.mlp.fc1",
    r"transformer_blocks\.(\d)\.ff\.net\.2": r"blocks.\1.mlp.fc2",
    r"proj_out_1": "final_layer.adaLN_modulation.1",
    r"proj_out_2": "final_layer.linear",
}


def _official(key: str, weights: dict[str, Tensor]) -> Tensor:
    """Find the official weight that diffusers calls `key`."""
    [(pattern, name)] = [(p, n) for p, n in _OFFICIAL.items() if re.fullmatch(rf"({p})(\.embedding_table)?\.\w+", key)]
    weight = weights[re.sub(pattern, name, key)]
    projection = re.search(r"\.to_([qkv])\.", key)
    return weight.chunk(3)["qkv".index(projection[1])] if projection else weight


@pytest.fixture(scope="session")
def dit_prior(d3hr, dit_folder) -> Callable:
    """Load the `official`, `toy` or `diffusers` tiny DiT with the reference's float32 sinusoids, once a session.

    The frequencies of these come from a float32 exponential, which differs in the last place between processors.
    """

    @functools.cache
    def load(kind: str, dtype: torch.dtype = torch.float64) -> "ld3m.priors.Prior":
        path = dit_folder if kind == "diffusers" else dit_folder / f"{kind}.pt"
        prior = ld3m.load_prior(path, dtype=dtype)
        table = d3hr[f"temb/{'diffusers' if kind == 'diffusers' else 'official'}_50x256"].flip(0)  # of 0, 20 ... 980
        prior.denoiser.time_projection.forward = lambda timesteps: table[timesteps // 20]
        return prior

    return load


@pytest.fixture(scope="session")
def stylegan_tensors(reference) -> dict[str, Tensor]:
    """The reference tensors of the tiny StyleGAN-XL generator."""
    return load_file(reference / "stylegan_tiny.safetensors")


@pytest.fixture(scope="session")
def stylegan_file(stylegan_tensors, tmp_path_factory) -> Path:
    """The state of that generator: 32 px, 16 layers, ten classes."""
    path = tmp_path_factory.mktemp("stylegan") / "tiny.safetensors"
    weights = {key: tensor for key, tensor in stylegan_tensors.items() if key.startswith("weights/")}
    save_file({key.removeprefix("weights/"): tensor for key, tensor in weights.items()}, path)
    return path


@pytest.fixture(scope="session")
def stylegan(stylegan_file) -> Callable:
    """Load that generator in a dtype, once a session; tests leave it unchanged."""
    return functools.cache(lambda dtype=torch.float64: load_stylegan(stylegan_file, dtype=dtype))


@pytest.fixture(scope="session")
def published_glad() -> ModuleType:
    """`benchmarks/glad.py`, the published scheme."""
    path = Path(__file__).parents[1] / "benchmarks" / "glad.py"
    spec = importlib.util.spec_from_file_location("published_glad", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_prior() -> "ld3m.priors.Prior":
    """The prior "random:tiny": 16 px, VQ, factor 2, four classes and the null class; tests leave it unchanged."""
    return ld3m.load_prior("random:tiny")


@pytest.fixture(scope="session")
def coloured() -> tuple[Tensor, Tensor]:
    """A pair (images, labels): 3 classes x 12 noisy images of 16 px, told apart by which channel is bright."""
    labels = torch.arange(36) % 3
    images = 100 * torch.rand(36, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[torch.arange(36), labels] += 150
    return images.to(torch.uint8), labels


@pytest.fixture(scope="session")
def coloured_folder(coloured, tmp_path_factory) -> Path:
    """The same images as a folder of PNG files: train/ and test/, by class."""
    root = tmp_path_factory.mktemp("coloured")
    for k, (image, label) in enumerate(zip(*coloured, strict=True)):
        folder = root / ("test" if k >= 24 else "train") / "rgb"[label]
        pictures.save_png(folder / f"{k}.png", pictures.to_pillow(image / 255))
    return root


@pytest.fixture(scope="session")
def distill_small(tiny_prior, coloured) -> Callable[..., "ld3m.Result"]:
    """Distil `coloured` through `tiny_prior` in moments; keyword arguments as of `ld3m.distill`."""
    defaults = {"prior": tiny_prior, "algorithm": "dm", "iterations": 3, "steps": 2, "width": 8, "real_batch": 4}
    defaults |= {"class_ids": (0, 1, 2), "evaluate": "none", "progress": False}
    defaults |= {"num_experts": 2, "expert_training_epochs": 2, "max_start_epoch": 2, "expert_epochs": 1}
    defaults |= {"student_steps": 2}
    return lambda data=coloured, **settings: ld3m.distill(data, **{**defaults, **settings})


@pytest.fixture(scope="session")
def small_options() -> str:
    """Options of `ld3m distill` for a moment's work on `coloured_folder`."""
    options = "--prior random:tiny --algorithm dm --iterations 2 --steps 1 --width 4 --class-ids 0 1 2"
    return f"{options} --evaluate none --quiet"


@pytest.fixture
def ld3m_command(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command line, of strings that are split and paths that are not; return (exit status, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = cli.main([word for a in arguments for word in (a.split() if isinstance(a, str) else [str(a)])])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def small(ld3m_command, coloured_folder, small_options) -> Callable[..., tuple[int, str, str]]:
    """Distil `coloured_folder` by the command line in a moment, with more options."""
    return lambda *more: ld3m_command("distill", coloured_folder, small_options, *more)


@pytest.fixture(scope="session")
def small_run(coloured_folder, small_options, tmp_path_factory) -> Path:
    """The folder of a run of `small` without more options; tests leave it unchanged."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["distill", str(coloured_folder), *small_options.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """Most bytes that a call held at once, beyond what was there before."""

    def measure(call: Callable[[], object]) -> int:
        call()  # first-call caches
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak

    return measure


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of the storages that autograd holds for backward passes, weights left out: now and at most."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        super().__init__(self._pack, lambda box: box.tensor)
        self._weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
        self._holders: collections.Counter[int] = collections.Counter()
        self.now = self.peak = 0

    def __enter__(self) -> "SavedTensors":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> "_Box":
        box, storage = _Box(tensor), tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._weights:
            self.now += 0 if self._holders[key] else size
            self.peak = max(self.peak, self.now)
            self._holders[key] += 1
            weakref.finalize(box, self._drop, key, size)
        return box

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        self.now -= 0 if self._holders[key] else size


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.fixture(scope="session")
def saved_tensors() -> type[SavedTensors]:
    """The class: `with saved_tensors(*modules) as count`."""
    return SavedTensors


@pytest.fixture(scope="session")
def interrupt() -> Callable[..., None]:
    """Make the n-th call of an attribute raise, before or after it has done its work."""

    def install(patch, owner, name, call, *, after=False, error=KeyboardInterrupt):
        original, calls = getattr(owner, name), iter(range(1000))

        def wrapped(*args, **kwargs):
            is_hit = next(calls) == call
            if is_hit and not after:
                raise error
            result = original(*args, **kwargs)
            if is_hit:
                raise error
            return result

        patch.setattr(owner, name, wrapped)

    return install
