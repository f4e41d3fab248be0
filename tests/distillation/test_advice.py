"""What a run says before it works, and refuses before anything is loaded."""

import pytest

from ld3m.errors import ConfigError, InputError, Ld3mError
from ld3m.spaces import base


def test_what_is_to_come_is_said(distill_small, caplog):
    caplog.set_level("INFO", logger="ld3m")
    distill_small(iterations=4, steps=1)
    assert "to come: 4 iterations, " in caplog.text and "3 images of 16 px" in caplog.text
    assert "for 2 more iterations" in caplog.text


def test_the_embedded_decoder_warns_of_other_images(distill_small, coloured, caplog):
    distill_small(prior="builtin", space="autoencoder", iterations=1, class_ids=None, resolution=32)
    assert "the decoder of fashion-mnist never saw images of" in caplog.text
    assert "ld3m prior train" in caplog.text


def test_a_bad_start_and_folder_are_refused_before_a_prior_is_loaded(distill_small, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "load_prior", None)
    with pytest.raises(ConfigError, match="init is 'real', 'kmeans', 'noise' or the folder"):
        distill_small(init="nosuch")
    (tmp_path / "file").touch()
    with pytest.raises(Ld3mError, match="is a file; choose another --out"):
        distill_small(out=tmp_path / "file" / "run")


def test_a_wrong_number_of_class_ids_is_refused_before_the_plan(distill_small, monkeypatch):
    monkeypatch.setattr("ld3m.spaces.latent.plan_work", None)
    with pytest.raises(InputError, match="class_ids needs one id a class: 3 classes, got 2 ids"):
        distill_small(class_ids=(0, 1))
