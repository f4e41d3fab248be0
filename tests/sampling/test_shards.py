"""Shards of a sampling, made apart and merged to the run of one process."""

import hashlib
import shutil

import pytest

import ld3m
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runs.shards import Share, share_of
from ld3m.sampling import dataset, job

SETTINGS = {"steps": 4, "stop": 2, "ipc": 2, "selector": "random", "class_ids": (0, 1, 2), "evaluate": "none"}


@pytest.fixture(scope="module")
def sample(coloured, tiny_prior):
    def make(out, data=coloured, **more):
        return ld3m.sample_dataset(data, out=out, progress=False, prior=tiny_prior, **{**SETTINGS, **more})

    return make


@pytest.fixture
def parts(sample, tmp_path):
    """The folder of three shards, made in another order."""
    for k in (0, 2, 1):
        sample(tmp_path / "parts", shard=(k, 3))
    return tmp_path / "parts"


def files(folder, but=()):
    paths = (path for path in folder.rglob("*") if path.is_file() and not set(but) & set(path.parts))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


@pytest.fixture
def merge(coloured, tiny_prior, monkeypatch):
    """`ld3m.merge` of shards whose data and prior were objects."""
    monkeypatch.setattr(job, "load_prior", lambda *_, **__: tiny_prior)
    return lambda folder, data=coloured: ld3m.merge(folder, data, progress=False)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_merged_run_is_that_of_one_process(count, sample, merge, tmp_path):
    whole = sample(tmp_path / "whole")
    for k in reversed(range(count)):
        sample(tmp_path / "parts", shard=f"{k}/{count}")
    result = merge(tmp_path / "parts")
    assert result.labels.equal(whole.labels) and result.class_names == whole.class_names
    own, theirs = files(tmp_path / "whole"), files(tmp_path / "parts", but=["shards"])
    differ = {"metrics.jsonl", "result.json", "report.html", ".ld3m.lock"}  # which hold times
    assert own.keys() == theirs.keys()
    assert {k: v for k, v in own.items() if k not in differ} == {k: v for k, v in theirs.items() if k not in differ}
    assert len((tmp_path / "parts/metrics.jsonl").read_text().splitlines()) == 3


def test_prototypes_keep_their_weights(sample, merge, tmp_path):
    whole = sample(tmp_path / "whole", selector="kmeans")
    for k in range(2):
        sample(tmp_path / "parts", selector="kmeans", shard=(k, 2))
    assert merge(tmp_path / "parts").weights.equal(whole.weights)


def test_a_shard_is_a_set_of_its_own_classes(parts):
    shard = ld3m.load(parts / "shards/1-of-3")
    assert shard.class_names == ("1",) and shard.labels.tolist() == [0, 0]


def test_a_finished_shard_changes_no_file_when_it_is_started_again(sample, parts, merge):
    before = files(parts)
    sample(parts, shard=(1, 3))
    assert files(parts) == before
    merge(parts)
    before = files(parts)
    sample(parts, shard=(1, 3))
    assert files(parts) == before


def test_a_shard_that_was_broken_off_goes_on(sample, merge, tmp_path, monkeypatch):
    whole, sample_class = sample(tmp_path / "whole"), dataset._sample_class

    def fails(job, label, rows):
        if label == 2:
            raise KeyboardInterrupt
        return sample_class(job, label, rows)

    sample(tmp_path / "parts", shard=(1, 2))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "_sample_class", fails)
        sample(tmp_path / "parts", shard=(0, 2))
    with pytest.raises(ConfigError, match=r"lacks 1 of 2 shards, missing or not finished: run those with --shard 0/2"):
        merge(tmp_path / "parts")
    made = tmp_path / "parts/shards/0-of-2/images"
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.png")}
    sample(tmp_path / "parts", shard=(0, 2))
    assert before and all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    assert merge(tmp_path / "parts").images.equal(whole.images)


def test_gaps_are_named(parts, merge):
    shutil.rmtree(parts / "shards/1-of-3")
    with pytest.raises(ConfigError, match=r"lacks 1 of 3 shards, missing or not finished: run those with --shard 1/3,"):
        merge(parts)
    assert [path.name for path in parts.iterdir()] == ["shards"]


def test_doubles_are_refused(sample, parts, merge):
    sample(parts, shard=(0, 2))
    with pytest.raises(ConfigError, match=r"shards of 2 and of 3: classes would be there twice"):
        merge(parts)


def test_other_settings_are_refused(sample, parts, merge):
    sample(parts, shard=(1, 3), seed=1, overwrite=True)
    with pytest.raises(ConfigError, match=r"1-of-3 was made with {'seed': 1}, and .*0-of-3 with {'seed': 0}; make"):
        merge(parts)


def test_other_data_are_refused_and_nothing_is_written(coloured, parts, merge):
    images, labels = coloured
    with pytest.raises(ConfigError, match=r"shard in .*0-of-3 was made from other data"):
        merge(parts, (255 - images, labels))
    assert [path.name for path in parts.iterdir()] == ["shards"]


def test_another_prior_is_refused(parts, merge, tiny_prior, monkeypatch):
    monkeypatch.setattr(job, "sources_of", lambda *_, **__: {"prior": "another"})
    with pytest.raises(ConfigError, match=r"shard in .*0-of-3 was made with another prior than .* is now"):
        merge(parts)
    assert [path.name for path in parts.iterdir()] == ["shards"]


def test_a_damaged_shard_is_refused_and_nothing_is_written(parts, merge):
    path = parts / "shards/2-of-3/distilled.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|digest|not what"):
        merge(parts)
    assert [path.name for path in parts.iterdir()] == ["shards"]


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "-1/3", (0, 0), (True, 2), 5, "0/4"])
def test_what_is_no_shard_is_refused(shard, sample, tmp_path):
    with pytest.raises(ConfigError, match="shard"):
        sample(tmp_path / "parts", shard=shard)
    assert not list(tmp_path.glob("parts/shards/*/config.yaml"))


def test_a_shard_needs_a_folder_that_is_no_run(sample, tmp_path):
    with pytest.raises(ConfigError, match="a shard needs out="):
        sample(None, shard=(0, 2))
    sample(tmp_path / "whole")
    with pytest.raises(ConfigError, match="is a run already"):
        sample(tmp_path / "whole", shard=(0, 2))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_class_is_in_one_share(count):
    shares = [Share(k, count) for k in range(count)]
    assert sorted(label for share in shares for label in share.classes(10)) == list(range(10))
    for share in shares:
        assert [share.position(label) for label in share.classes(10)] == list(range(len(share.classes(10))))


def test_shards_are_read_from_text():
    assert share_of("2/5") == Share(2, 5) == share_of((2, 5)) and share_of(None) == Share(0, 1)
