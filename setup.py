"""Build of ld3m."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "ld3m/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="ld3m",
    version=VERSION,
    description="Distil an image data set into a few synthetic images per class through a frozen diffusion model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "ld3m/data/embedded/LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ld3m", "ld3m.*"]),
    package_data={
        "ld3m.data": ["ilsvrc.txt", "embedded/*"],
        "ld3m.priors": ["embedded/*", "embedded/*/*"],
    },
    install_requires=[
        "torch>=2.10",  # everything
        "diffusers>=0.42",  # modules of the priors, converters of their checkpoints
        "safetensors>=0.4.5",  # weights, checkpoints, results: files that cannot run code
        "numpy",  # Pillow's pictures to tensors
        "Pillow>=10.4",  # decoding, grids, charts
        "tyro>=0.9",  # the command line from the config dataclasses
        "tqdm",  # progress bars
        "PyYAML",  # config files, CompVis configurations
    ],
    extras_require={
        "data": ["datasets"],  # Hugging Face data sets
        "test": ["pytest", "pytest-benchmark", "pytest-cov", "hypothesis", "datasets"],
    },
    entry_points={"console_scripts": ["ld3m = ld3m.cli:main"]},
)
