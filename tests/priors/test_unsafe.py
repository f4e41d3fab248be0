"""Checkpoints and YAMLs that try to run something, or are no checkpoints at all."""

import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

import ld3m
from ld3m.errors import CheckpointError, ConfigError, Ld3mError


class Calls:
    """Pickled as a call that leaves a file behind when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    """The file that an executed payload would make; it must not be there when the test ends."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code from a loaded file was run"


def payloads(marker: Path) -> dict[str, Calls]:
    write = f"open({str(marker)!r}, 'w')"
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, write),
        "exec": Calls(exec, write),
        "getattr": Calls(getattr, "text", "upper"),
        "open": Calls(open, str(marker), "w"),
        "import": Calls(__import__, "antigravity"),
    }


@pytest.mark.parametrize("kind", ["system", "eval", "exec", "getattr", "open", "import"])
@pytest.mark.parametrize("place", ["beside the weights", "among the weights", "deep inside"])
def test_a_payload_is_refused_and_not_run(checkpoint, marker, kind, place):
    payload = payloads(marker)[kind]
    file = checkpoint()
    if place == "beside the weights":
        file.save(hyper_parameters=payload)
    elif place == "among the weights":
        file.state["model.diffusion_model.out.2.bias"] = payload
        file.save()
    else:
        file.save(callbacks={"a": [({"b": (1, [payload])},)]})
    said = {"getattr": "getattr", "import": "__import__", "open": "open"}.get(kind, kind)
    with pytest.raises(CheckpointError, match=said):
        file.load()


@pytest.mark.parametrize("kind", ["system", "eval"])
def test_a_payload_in_a_plain_pickle_is_refused_and_not_run(checkpoint, marker, kind):
    file = checkpoint()
    file.path.write_bytes(pickle.dumps({"state_dict": payloads(marker)[kind]}, protocol=2))
    with pytest.raises(CheckpointError, match=file.path.name):
        file.load()


def _in_a_zip(path, pickled, name="archive/data.pkl", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["system", "eval", "import"])
@pytest.mark.parametrize("container", ["plain", "zip"])
def test_a_payload_of_any_protocol_is_refused_and_not_run(checkpoint, marker, protocol, kind, container):
    file, pickled = checkpoint(), pickle.dumps({"state_dict": payloads(marker)[kind]}, protocol=protocol)
    file.path.write_bytes(pickled) if container == "plain" else _in_a_zip(file.path, pickled)
    with pytest.raises(CheckpointError, match=file.path.name):
        file.load()


PICKLES = {
    "empty": b"",
    "one byte": b"\x80",
    "cut": pickle.dumps({"state_dict": [1.0] * 100}, protocol=2)[:50],
    "cut of protocol 4": pickle.dumps({"state_dict": [1.0] * 100}, protocol=4)[:-1],
    "no opcode": b"\x80\x02\xff\xff.",
    "a number": pickle.dumps(3, protocol=2),
    "a list": pickle.dumps([[], {}], protocol=0),
    "nothing on the stack": b".",
    "a mark alone": b"(.",
    "an unknown persistent id": b"\x80\x02Pnosuch\n.",
    "an unknown memo": b"\x80\x02h\x07.",
    "a later protocol": b"\x80\x09N.",
}  # fmt: skip


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("container", ["plain", "zip", "deflated"])
def test_a_pickle_of_something_else_is_one_line(checkpoint, pickled, container):
    file = checkpoint()
    method = zipfile.ZIP_DEFLATED if container == "deflated" else zipfile.ZIP_STORED
    file.path.write_bytes(pickled) if container == "plain" else _in_a_zip(file.path, pickled, method=method)
    with pytest.raises(CheckpointError, match=file.path.name) as error:
        file.load()
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_a_payload_in_the_old_torch_format_is_refused_and_not_run(checkpoint, marker):
    file = checkpoint()
    content = {"state_dict": file.state, "x": payloads(marker)["system"]}
    torch.save(content, file.path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=file.path.name):
        file.load()


@pytest.fixture
def fake_module(monkeypatch):
    """Make a module with a class of the given name, there while the file is written and gone when it is read."""

    def make(module_name: str, class_name: str) -> type:
        module = types.ModuleType(module_name)
        made = type(class_name, (), {"__module__": module_name})
        setattr(module, class_name, made)
        for depth in range(module_name.count(".") + 1):
            parent = ".".join(module_name.split(".")[: depth + 1])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module_name, module)
        return made

    return make


def test_objects_of_the_trainer_are_inert(checkpoint, fake_module, monkeypatch, reference_prior):
    """A callback's class as a key and an object with a state, as Lightning leaves them, are stepped over."""
    callback = fake_module("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    with_state = callback()
    with_state.best, with_state.paths = 0.5, ["a", "b"]
    file = checkpoint().save(callbacks={callback: {"best": 0.5}}, other=[with_state])
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    prior = file.load()
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)
    conditioning, latents = prior.embed(torch.tensor([1])), torch.ones(1, 3, 8, 8)
    want = reference_prior("cin", torch.float32).predict_noise(latents, 9, conditioning)
    assert torch.equal(prior.predict_noise(latents, 9, conditioning), want)


def test_a_trainers_name_does_not_make_a_call_run(checkpoint, fake_module, monkeypatch, marker):
    """A global in a tolerated module is replaced, never imported: even a module of that name does nothing."""
    fake = fake_module("pytorch_lightning.hooks", "run")
    file = checkpoint().save(hook=Calls(fake, str(marker)))
    armed = types.ModuleType("pytorch_lightning.hooks")
    armed.run = lambda path: Path(path).touch()
    monkeypatch.setitem(sys.modules, "pytorch_lightning.hooks", armed)
    assert file.load().num_classes == 10


def test_an_unknown_global_is_refused_by_name(checkpoint, fake_module):
    made = fake_module("somebodys_code", "Thing")
    file = checkpoint().save(thing=made())
    with pytest.raises(CheckpointError, match=r"somebodys_code\.Thing"):
        file.load()


def test_a_deeply_nested_pickle_ends_in_an_error(checkpoint):
    """As deep as the unpickler reads it without recursion; a dict that opens and never closes."""
    file = checkpoint().save()
    with zipfile.ZipFile(file.path) as archive:
        names = archive.namelist()
    pickled = next(name for name in names if name.endswith("data.pkl"))
    with zipfile.ZipFile(file.path, "w") as archive:
        archive.writestr(pickled, b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".")
        archive.writestr(pickled.replace("data.pkl", "version"), "3")
    with pytest.raises(CheckpointError, match=file.path.name):
        file.load()


def test_a_billion_references_cost_nothing(checkpoint):
    """Lists of lists of the same list, 10^9 leaves when walked, are stepped over."""
    bomb = ["x"] * 10
    for _ in range(8):
        bomb = [bomb] * 10
    file = checkpoint().save(bomb=bomb)
    assert file.load().num_classes == 10
    file.state = bomb
    with pytest.raises(CheckpointError, match=file.path.name) as caught:
        file.save().load()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5, 0.99])
def test_a_truncated_file_is_said_to_be_no_checkpoint(checkpoint, kept):
    file = checkpoint().save()
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=f"{file.path.name}.*(fetch|convert)"):
        file.load()


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"weight": torch.ones(3)}}, {"state_dict": 3}, [1, 2], torch.ones(3), {}, {"state_dict": {1: 2}}],
    ids=["other model", "number", "list", "tensor", "empty", "numbers as keys"],
)
def test_a_file_of_something_else_is_refused(checkpoint, content):
    file = checkpoint()
    torch.save(content, file.path)
    with pytest.raises(CheckpointError, match=rf"{file.path.name}.*model\.diffusion_model"):
        file.load()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all\n" * 99, b"PK\x03\x04 not a zip", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_of_other_bytes_is_refused(checkpoint, content):
    file = checkpoint()
    file.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=file.path.name):
        file.load()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/object/new:os.system ['touch {}']",
            "model: !!python/name:os.system", "a: !!python/module:os"],
)  # fmt: skip
def test_a_yaml_with_python_tags_is_refused_and_not_run(checkpoint, marker, tag):
    file = checkpoint().save()
    file.config.write_text(tag.format(marker) + "\n")
    with pytest.raises(ConfigError, match="YAML"):
        file.load()


@pytest.mark.parametrize("name", ["nosuch", "random:nosuch", "/no/such/file.ckpt", "no/such.ckpt"])
def test_an_unknown_prior_lists_the_valid_ones(name):
    with pytest.raises(Ld3mError) as caught:
        ld3m.load_prior(name)
    for valid in ("random:tiny", "random:cin256", "random:ffhq256", "random:ffhq256-released", "random:builtin"):
        assert valid in str(caught.value)
    assert name in str(caught.value)
