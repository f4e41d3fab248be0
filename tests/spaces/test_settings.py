"""Settings that some spaces alone take."""

import pytest

from ld3m.config import DistillConfig
from ld3m.errors import ConfigError
from ld3m.spaces import SPACES, setup_of


@pytest.mark.parametrize(
    ("space", "name", "value", "spaces"),
    [
        ("ld3m", "layer", 0, "glad"),
        ("pixel", "lr_codes", 0.1, "glad"),
        ("glad", "latent_size", 16, "ld3m or autoencoder"),
        ("glad", "attention", "bmm", "ld3m or autoencoder"),
        ("autoencoder", "cuda_graphs", True, "ld3m"),
        ("pixel", "micro_batch", 4, "ld3m or autoencoder or glad"),
        ("glad", "cuda_graphs", True, "ld3m"),
        ("pixel", "retain", 0.5, "ld3m or autoencoder or glad"),
    ],
)
def test_what_a_space_has_no_use_for_is_refused(space, name, value, spaces):
    with pytest.raises(
        ConfigError, match=f"{name} is for space {spaces}, and the space is '{space}'; leave {name} out"
    ):
        setup_of(DistillConfig(**{"space": space, name: value}))


def test_what_a_space_takes_is_let_through():
    assert setup_of(DistillConfig(space="glad", layer=0, lr_codes=0.1, retain=0.5)) is SPACES["glad"]
    assert setup_of(DistillConfig(space="autoencoder", latent_size=8, cuda_graphs=False)) is SPACES["autoencoder"]
