"""The class table of ILSVRC-2012."""

import pytest

from ld3m.data import ilsvrc_index
from ld3m.data.ilsvrc import classes

# Index, wnid and name as other sources of the table have them.
KNOWN = [
    (0, "n01440764", "tench"),
    (217, "n02102040", "English springer"),
    (482, "n02979186", "cassette player"),
    (491, "n03000684", "chain saw"),
    (497, "n03028079", "church"),
    (566, "n03394916", "French horn"),
    (569, "n03417042", "garbage truck"),
    (571, "n03425413", "gas pump"),
    (574, "n03445777", "golf ball"),
    (701, "n03888257", "parachute"),
    (999, "n15075141", "toilet tissue"),
]


def test_the_table_is_complete_and_sorted_by_wnid():
    wnids = [wnid for wnid, _ in classes()]
    assert len(wnids) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert all(name and name == name.strip() for _, name in classes())


@pytest.mark.parametrize(("index", "wnid", "name"), KNOWN)
def test_known_classes(index, wnid, name):
    assert classes()[index] == (wnid, name)
    for spelling in (wnid, name, name.upper(), name.replace(" ", "_"), name.replace(" ", "-")):
        assert ilsvrc_index(spelling) == index


def test_every_class_is_found_by_its_wnid_and_by_its_name_unless_two_share_it():
    assert [ilsvrc_index(wnid) for wnid, _ in classes()] == list(range(1000))
    unfound = {name for index, (_, name) in enumerate(classes()) if ilsvrc_index(name) != index}
    assert unfound == {"crane", "maillot"}


@pytest.mark.parametrize("name", ["crane", "maillot", "CARDIGAN", "n00000000", "T-shirt/top", ""])
def test_what_names_no_class_or_two_has_no_index(name):
    assert ilsvrc_index(name) is None


def test_exact_spelling_tells_the_dog_from_the_garment():
    assert (ilsvrc_index("Cardigan"), ilsvrc_index("cardigan")) == (264, 474)
