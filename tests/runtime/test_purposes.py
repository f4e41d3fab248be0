"""Generators and fingerprints follow all that they are given."""

import torch

from ld3m.runtime import seeds
from ld3m.runtime.fingerprints import fingerprint


def test_a_generator_follows_the_whole_purpose():
    purposes = [(0,), (0, "noise"), (0, "noise", 1), (0, "noise", 2), (1, "noise", 1), (0, "kmeans"), ("noise", 0)]
    first = [int(torch.randint(2**60, (), generator=seeds.generator(*purpose))) for purpose in purposes]
    assert len(set(first)) == len(purposes)
    assert first == [int(torch.randint(2**60, (), generator=seeds.generator(*purpose))) for purpose in purposes]


def test_a_fingerprint_follows_tensors_and_facts_and_nothing_else():
    one, other = torch.arange(4.0), torch.arange(4.0).flip(0)
    first = fingerprint((one, other), "a", {"x": 1, "y": [2]})
    assert len(first) == 16 and int(first, 16) >= 0
    assert fingerprint((one.requires_grad_(), other), "a", {"y": [2], "x": 1}) == first
    assert fingerprint((one.detach().repeat_interleave(2)[::2], other), "a", {"x": 1, "y": [2]}) == first
    changed = [((one, other), "b", {"x": 1, "y": [2]}), ((other, one), "a", {"x": 1, "y": [2]})]
    changed += [((one,), "a", {"x": 1, "y": [2]}), ((one, other), "a", {"x": 1, "y": [3]})]
    assert len({first, *(fingerprint(*facts) for facts in changed)}) == 5
