"""The extension itself, and the choice of a backend."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

import ld3m
from ld3m.errors import BackendError
from ld3m.ops import backends
from ld3m.ops.backends import BACKENDS, INTERPRET, choose, missing


def every(backend, x):
    return ""


def none_but(name):
    return lambda backend, x: "" if backend == name else f"{backend} is out"


def test_extension_is_there_and_of_this_version():
    from ld3m import _C

    assert _C.__version__ == ld3m.__version__
    assert missing("native", torch.zeros(1)) == ""


def test_kernels_are_there():
    import ld3m.kernels

    assert ld3m.kernels.__doc__


def test_takes_the_first_that_can(monkeypatch):
    monkeypatch.setattr(backends, "FORCED", "auto")
    x = torch.zeros(2)
    assert choose("auto", every, x) == BACKENDS[0]
    for name in BACKENDS:
        assert choose("auto", none_but(name), x) == name
        assert choose(name, every, x) == name


def test_never_falls_back_on_a_forced_choice(monkeypatch):
    x = torch.zeros(2, 3)
    text = r"triton cannot take \(2, 3\) torch.float32 on cpu: triton is out, or leave the choice to backend='auto'"
    with pytest.raises(BackendError, match=text):
        choose("triton", none_but("eager"), x)
    monkeypatch.setattr(backends, "FORCED", "triton")
    with pytest.raises(BackendError, match=text):
        choose("auto", none_but("eager"), x)
    assert choose("eager", every, x) == "eager"  # the argument wins over the environment


def test_environment_forces_a_backend():
    code = "import torch, ld3m.ops.backends as b; print(b.choose('auto', b.missing, torch.zeros(1)))"
    for name in ("native", "eager"):
        environment = {**os.environ, "LD3M_BACKEND": name}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == name


def test_refuses_an_unknown_name(monkeypatch):
    with pytest.raises(BackendError, match="backend is auto, native, triton, eager; got 'cuda'"):
        choose("cuda", every, torch.zeros(1))
    monkeypatch.setattr(backends, "FORCED", "Eager")
    with pytest.raises(BackendError, match=r"got 'Eager' \(by argument or LD3M_BACKEND\)"):
        choose("auto", every, torch.zeros(1))


def test_reasons(monkeypatch):
    cpu, meta = torch.zeros(1), torch.zeros(1, device="meta")
    assert missing("eager", meta) == ""
    assert missing("native", meta) == "native is for cpu and cuda, got meta"
    assert "got meta" in missing("triton", meta)
    assert ("TRITON_INTERPRET=1, got cpu" in missing("triton", cpu)) == (not INTERPRET)
    monkeypatch.setattr(backends, "INTERPRET", True)
    assert missing("triton", cpu) == ""
    assert missing("triton", cpu.double()) == "float64 has no Triton kernel"
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert missing("triton", cpu) == "Triton is not installed; pip install triton"
    monkeypatch.setattr(backends, "_not_built", "built for another version; reinstall ld3m")
    assert missing("native", cpu) == "built for another version; reinstall ld3m"


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 0), True), ((8, 7), True), ((9, 0), True), ((12, 0), True)],
)
def test_a_gpu_of_another_architecture_than_was_built_for(capability, runs, monkeypatch):
    monkeypatch.setattr(backends, "native", SimpleNamespace(cuda_archs="75,80,86,89,90"))
    monkeypatch.setattr(backends, "_refusals", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    reason = backends._no_code(0)
    assert (reason == "") == runs
    assert runs or reason.endswith("the device is 70; set LD3M_CUDA_ARCHS and reinstall")


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
def test_refuses_transforms(transform):
    def op(x):
        choose("auto", every, x)
        return x.sum()

    with pytest.raises(BackendError, match=r"torch\.func transforms or forward-mode AD; use plain torch operations"):
        if transform == "jvp":
            torch.func.jvp(op, (torch.ones(2),), (torch.ones(2),))
        elif transform == "forward mode":
            with forward_ad.dual_level():
                op(torch.ones(2))
        else:
            getattr(torch.func, transform)(op)(torch.ones(2))
    op(torch.ones(2))


def test_refuses_transforms_in_compiled_code():
    def op(x):
        choose("auto", every, x)
        return x.sum()

    assert torch.compile(op, fullgraph=True, backend="aot_eager")(torch.ones(2)) == 2
    with pytest.raises(Exception, match=r"torch\.func transforms"):
        torch.compile(torch.func.grad(op), fullgraph=True, backend="aot_eager")(torch.ones(2))


@pytest.mark.skipif(backends.native is None, reason="ld3m._C is not built")
def test_the_stub_names_what_is_bound():
    stub = (Path(backends.__file__).parents[1] / "_C.pyi").read_text(encoding="utf-8")
    typed = set(re.findall(r"^def (\w+)\(", stub, re.MULTILINE))
    bound = {name for name, value in vars(backends.native).items() if callable(value) and not name.startswith("__")}
    for_cuda = {name for name in typed if name.endswith("_cuda") or name.startswith("cuda_")}
    assert typed - for_cuda <= bound <= typed
