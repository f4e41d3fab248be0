"""Which class of a prior stands for which class of a data set."""

import logging
from types import SimpleNamespace

import pytest

import ld3m
from ld3m.errors import InputError
from ld3m.priors import classes
from ld3m.priors.classes import match_classes


def prior(num_classes=1000, class_names=None):
    return SimpleNamespace(name="prior", num_classes=num_classes, null_class=num_classes, class_names=class_names)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.INFO, logger="ld3m")
    return caplog


def test_imagenet_priors_match_by_wnid(warnings):
    wnids = ("n02979186", "n01440764", "n15075141")
    assert match_classes(prior(), ("any", "name", "here"), wnids) == [482, 0, 999]
    assert not warnings.records


@pytest.mark.parametrize("name", ["golf ball", "Golf Ball", "golf_ball", "golf-ball"])
def test_imagenet_priors_match_by_name(name):
    assert match_classes(prior(), ("tench", name), (None, None)) == [0, 574]


def test_all_of_ilsvrc_matches_by_index(warnings):
    names = sorted(map(str, range(1000)))  # as folders are listed: "0", "1", "10", "100" ...
    assert match_classes(prior(), names, (None,) * 1000) == [int(name) for name in names]
    assert not warnings.records
    assert match_classes(prior(), names[:3], (None,) * 3) == [1000] * 3


def test_a_name_helps_where_the_wnid_is_not_one_of_the_1000():
    assert match_classes(prior(), ("tench",), ("n99999999",)) == [0]


def test_classes_that_match_nothing_start_from_null_and_are_logged(warnings):
    names = ("tench", "my left shoe", "golf ball", "crane")  # crane is a bird and a machine
    assert match_classes(prior(), names, (None,) * 4) == [0, 1000, 574, 1000]
    [record] = warnings.records
    assert record.levelno >= logging.INFO and record.name.startswith("ld3m")
    for said in ("my left shoe", "crane", "null", "class_ids"):
        assert said in record.getMessage()
    assert "golf ball" not in record.getMessage()


def test_priors_that_know_their_names_match_by_them(warnings):
    own = prior(3, ("T-shirt/top", "Trouser", "Ankle boot"))
    assert match_classes(own, ("ankle boot", "Trouser"), (None, None)) == [2, 1]
    assert not warnings.records
    assert match_classes(own, ("tench", "trouser"), ("n01440764", None)) == [3, 1]
    assert "tench" in warnings.records[0].getMessage()


def test_the_embedded_prior_says_what_it_knows(warnings):
    embedded = prior(10)
    embedded.name = ld3m.load_prior("builtin", device="meta").name
    for own, said in ((embedded, True), (prior(10), False)):
        warnings.clear()
        match_classes(own, ("tench",), (None,))
        assert ("Fashion-MNIST alone, in grey: `ld3m prior train`" in warnings.text) == said
        assert "--class-ids" in warnings.text


def test_priors_of_another_number_of_nameless_classes_match_nothing():
    assert match_classes(prior(10), ("tench", "golf ball"), ("n01440764", None)) == [10, 10]


def test_class_ids_win(warnings):
    assert match_classes(prior(), ("tench", "x", "y"), ("n01440764", None, None), [7, 1000, 7]) == [7, 1000, 7]
    assert not warnings.records


@pytest.mark.parametrize("class_ids", [[0], [0, 1, 2]])
def test_class_ids_are_one_a_class(class_ids):
    with pytest.raises(InputError, match=rf"class_ids.*2 classes.*{len(class_ids)}"):
        match_classes(prior(), ("a", "b"), (None, None), class_ids)


@pytest.mark.parametrize("wrong", [-1, 1001, 99999])
def test_class_ids_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=rf"class_ids.*999.*{wrong}"):
        match_classes(prior(), ("a", "b"), (None, None), [0, wrong])


def test_an_unconditional_prior_has_no_classes_to_match():
    with pytest.raises(InputError, match="no classes"):
        match_classes(prior(None), ("a",), (None,))


def test_names_that_differ_in_case_alone_are_different_classes():
    assert match_classes(prior(3, ("A", "a", "B")), ("a", "A", "b"), (None,) * 3) == [1, 0, 2]
    with pytest.raises(InputError, match=r"no class of prior matches \['X'\]"):
        match_classes(prior(3, ("xX", "Xx", "b")), ("b", "X"), (None,) * 2, is_required=True)
    with pytest.raises(InputError, match=r"no class of prior matches \['xx'\]"):  # it may be either
        match_classes(prior(3, ("xX", "Xx", "b")), ("b", "xx"), (None,) * 2, is_required=True)


def test_a_prior_that_names_the_classes_of_ilsvrc_matches_by_wnid_and_by_spelling():
    from ld3m.data.ilsvrc import classes

    names = tuple(name for _, name in classes())
    known = prior(class_names=(*names[:3], "another spelling", *names[4:]))
    assert match_classes(known, ("any", "golf_ball"), ("n01440764", None)) == [0, 574]
    assert match_classes(prior(class_names=("b", "a") * 500), ("a",), ("n01440764",)) == [1]


def test_many_unmatched_names_are_summed_up():
    names = [f"class {k}" for k in range(1000)]
    text = classes._listed(names)
    assert text.startswith("['class 0', 'class 1', ") and text.endswith("] and 988 more, 1000 in all")
    assert len(text) < 200
    assert classes._listed(["a", "b"]) == "['a', 'b']"
