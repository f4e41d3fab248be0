"""What is read back: each kind of damage is one line that names file, key, what was expected and what came."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch

from ld3m.config import bounded_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runtime import reading, storage
from ld3m.runtime.devices import is_memory_short, is_out_of_memory

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "stands for more than 20,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 5000, "nested deeper than 50 levels"),
        ("{" * 5000, "nested deeper than 50 levels"),
        ("lr: 2001-99-99", "is not plain YAML: month must be in 1..12"),
        ("lr: " + "9" * 5000, "number of 5,000 characters"),
        ("lr: 0x" + "f" * 500, "more than 64 bits"),
        ("? [a]\n: b", "unhashable key"),
        ("x: !!python/object/apply:os.system ['id']", "could not determine a constructor"),
        ("x: " + "y" * 2**20, "it has 1,048,579 characters"),
    ],
    ids=["bomb", "cycle", "lists", "mappings", "date", "digits", "hexadecimal", "key", "code", "long"],
)
def test_yaml_takes_bounded_work(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        bounded_yaml.parse(text, "c.yaml")
    assert str(caught.value).startswith("c.yaml") and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_yaml_that_is_well_is_read():
    assert bounded_yaml.parse("a: &a {b: 1}\nc: {<<: *a}\nd: [1e-3, 2.5, x]", "c") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": ["1e-3", 2.5, "x"],
    }


CHECK = reading.mapping(
    {"n": reading.whole(1, 9), "x": reading.listing(reading.number(0, 1), 1, 3)},
    {"name": reading.optional(reading.text(5)), "kind": reading.one_of("a", 1)},
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"n": 0, "x": [0]}, "f: n is a whole number from 1 to 9, got 0; again"),
        ({"n": True, "x": [0]}, "f: n is a whole number from 1 to 9, got True; again"),
        ({"n": 1.0, "x": [0]}, "f: n is a whole number from 1 to 9, got 1.0; again"),
        ({"n": 1, "x": []}, "f: x is a list of 1 to 3, got []; again"),
        ({"n": 1, "x": [0, "1"]}, "f: x[1] is a number from 0 to 1, got '1'; again"),
        ({"n": 1, "x": [float("nan")]}, "f: x[0] is a number from 0 to 1, got nan; again"),
        ({"n": 1, "x": [0], "name": "abcdef"}, "f: name is one of None or a text, got 'abcdef'; again"),
        ({"n": 1, "x": [0], "kind": True}, "f: kind is one of 'a', 1, got True; again"),
        ({"n": 1}, "f: expected an object with 'x', got ['n']; again"),
        ([], "f: expected an object of names and values, got []; again"),
    ],
)
def test_a_misfit_is_named_with_its_key(content, said):
    with pytest.raises(CheckpointError) as caught:
        reading.checked(content, CHECK, source="f", remedy="again")
    assert str(caught.value) == said


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN x", "9" * 5000, "\0", '{"a": ' * 200 + "1" + "}" * 200])
def test_json_that_is_none_is_one_line(text, tmp_path):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"f\.json is damaged") as caught:
        reading.read_json(tmp_path / "f.json", remedy="again")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe4")
    os.mkfifo(tmp_path / "pipe")
    for name, said in {
        "latin": "not UTF-8",
        "pipe": "a device or a pipe",
        "none": "is not there",
        ".": "directory",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            reading.read_text(tmp_path / name)
    with pytest.raises(CheckpointError, match="longer than the file system takes"):
        reading.is_there(tmp_path / ("a" * 300))
    with pytest.raises(CheckpointError, match="NUL"):
        reading.is_there(tmp_path / "a\0b")
    with pytest.raises(ConfigError, match="there is no home"):
        reading.expanded("~nosuchuser/x", "data")
    assert reading.is_there(tmp_path) and not reading.is_there(tmp_path / "latin" / "x")


def test_values_in_messages_are_short_and_steer_no_terminal():
    assert reading.shown("\x1b[31m\n") == repr("\x1b[31m\n")
    assert reading.shown_text("a\x1b\n\u202eb") == "a\\x1b\\n\\u202eb"
    assert reading.shown(10**5000) == "a int" and len(reading.shown("x" * 999)) == 80
    assert reading.shown(list(range(100))) == "a list of 100"


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_byte_of_a_sealed_file_never_passes(seed, tmp_path):
    path, draw = tmp_path / "t.safetensors", random.Random(seed)
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5), "c": torch.ones((), dtype=torch.bfloat16)}
    storage.save_tensors(path, tensors, {"iteration": "3", "data": "x"})
    whole = path.read_bytes()
    found, about = storage.load_tensors(path)
    assert about == {"iteration": "3", "data": "x"} and all(torch.equal(found[k], v) for k, v in tensors.items())
    kind, at = draw.choice(["flip", "cut", "zero"]), draw.randrange(len(whole))
    flipped = bytes([whole[at] ^ 1 << draw.randrange(8)])
    damaged = {
        "flip": whole[:at] + flipped + whole[at + 1 :],
        "cut": whole[:at],
        "zero": whole[:at].ljust(len(whole), b"\0"),
    }
    path.write_bytes(damaged[kind])
    with pytest.raises(CheckpointError, match=r"t\.safetensors") as caught:
        storage.load_tensors(path)
    assert len(str(caught.value)) < 600


def test_a_file_without_a_digest_is_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "t", {"ld3m": json.dumps({"iteration": "3", "data": "x"})})
    assert storage.load_tensors(tmp_path / "t")[1] == {"iteration": "3", "data": "x"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        RuntimeError("unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA driver error: out of memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("never heard of"), ValueError(), OSError(28, "full"), CheckpointError("x")]
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_memory_short() and not is_out_of_memory(error)


def test_out_of_memory_is_known_behind_the_error_of_a_capture():
    """Which fails on its way out, with an error of its own."""
    found = None
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation not permitted when stream is capturing; invalid")
    except RuntimeError as error:
        found = error
    assert is_out_of_memory(found)
    assert not is_out_of_memory(RuntimeError("operation not permitted when stream is capturing; invalid"))


def test_an_error_of_unknown_words_at_the_limit_is_one():
    """In a process of its own, whose address space is limited to a little more than it has."""
    code = """
import resource
from ld3m.runtime.devices import is_out_of_memory
from ld3m.errors import CheckpointError
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 100 * 2**20, resource.RLIM_INFINITY))
unknown = RuntimeError("a library failed")
assert not is_out_of_memory(unknown, needed=50 * 2**20)
assert is_out_of_memory(unknown, needed=200 * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (taken + 20 * 2**20, resource.RLIM_INFINITY))
assert is_out_of_memory(unknown)
assert not is_out_of_memory(CheckpointError("damaged"))
assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
