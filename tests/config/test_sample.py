"""Settings of a sampled data set, and their checks."""

import math

import pytest
import yaml

from ld3m import config as configuration
from ld3m.errors import ConfigError
from ld3m.sampling import SampleConfig, resolve


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compat": "d4m"}, "compat is one of d3hr"),
        ({"dtype": "float16"}, "dtype is one of"),
        ({"ipc": 0}, "ipc is a whole number, at least 1; got 0"),
        ({"groups": 0}, "groups is a whole number, at least 1"),
        ({"real_images": 0}, "real_images is a whole number, at least 1"),
        ({"micro_batch": 0}, "micro_batch is a whole number, at least 1"),
        ({"steps": 1}, "steps is a whole number from 2 to 1000, got 1"),
        ({"steps": 1001}, "steps is a whole number from 2 to 1000"),
        ({"stop": 0}, "stop is a point of the grid of 50 steps, from 1 to 49; got 0"),
        ({"stop": 50}, "from 1 to 49; got 50"),
        ({"stop": 49, "compat": "d3hr", "ipc": 2}, "from 1 to 48; got 49"),
        ({"steps": 20}, "stop is a point of the grid of 20 steps, from 1 to 19; got 30"),
        ({"guidance_scale": math.nan}, "guidance_scale is a finite number"),
        ({"inversion_guidance": math.inf}, "inversion_guidance is a finite number"),
        ({"weights": (1.0, 1.0)}, "weights are three numbers"),
        ({"weights": (1.0, 1.0, -1.0)}, "weights are three numbers, 0 or more"),
        ({"pull": -0.1}, "pull is a strength, 0 or more; got -0.1"),
        ({"pull": math.nan}, "pull is a strength, 0 or more; got nan"),
        ({"pull_steps": (50, 0)}, "pull_steps are two points of the grid of 50 steps, from 49 down to 0"),
        ({"pull_steps": (3, 4)}, "the noisier one first; got"),
        ({"guided_channels": 0}, "guided_channels is a whole number, at least 1"),
        ({"sampler": "euler"}, "sampler is one of ddim, ddpm"),
        ({"variance": "small"}, "variance is one of fixed-small, fixed-large, learned"),
        ({"spacing": "even"}, "spacing is one of leading, linspace, trailing"),
        ({"modes": "dbscan"}, "modes is one of kmeans, gmm, nearest"),
        ({"compat": "d3hr"}, "published score of a single image is not a number; choose ipc 2"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        SampleConfig(**settings)


def test_build_names_the_command():
    with pytest.raises(ConfigError, match="'selectors' is not a setting of sample; did you mean 'selector'"):
        configuration.build({"selectors": "group"}, SampleConfig())
    with pytest.raises(ConfigError, match="ipc is int, got 'many'"):
        configuration.build({"ipc": "many"}, SampleConfig())


def test_resolution_decides_what_is_not_said():
    small, large = (resolve(SampleConfig(), side) for side in (32, 256))
    assert (small.resolution, small.evaluate, small.real_images) == (32, "quick", 100)
    assert (large.resolution, large.evaluate, large.real_images) == (256, "glad-hard", None)
    assert resolve(SampleConfig(ipc=300), 32).real_images == 300
    assert resolve(SampleConfig(resolution=128, evaluate="none"), 32).evaluate == "none"


def test_a_file_has_the_same_settings():
    config = SampleConfig(selector="moments", weights=(1.0, 2.0, 0.5), class_ids=(3, 1))
    assert configuration.build(yaml.safe_load(configuration.to_yaml(config)), SampleConfig()) == config
