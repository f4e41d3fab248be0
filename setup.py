"""Build of ld3m: the package, its Triton kernels, and ld3m._C from csrc/ where there is a compiler.

LD3M_EXT=0|1 leaves ld3m._C out | insists on it; LD3M_CUDA=0|1 the same for its CUDA part; unset, each is built where
its compiler is, and a failure is a warning. LD3M_CUDA_ARCHS lists the GPU architectures, "75 80 86 89 90" by default,
the highest last. CXX names the C++ compiler, CXXFLAGS and LDFLAGS add to the flags.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
VERSION = re.findall(r'__version__ = "(.+?)"', (ROOT / "ld3m/__init__.py").read_text(encoding="utf-8"))[0]


class NinjaBuild(build_ext):
    """Compile csrc/ with ninja: every core, only what changed, nvcc for the .cu files."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.inplace = True  # the clone gets a copy too: code run inside it imports ld3m from there

    def build_extension(self, ext: Extension) -> None:
        cxx = shutil.which(os.environ.get("CXX", "c++"))
        cuda, nvcc = os.environ.get("LD3M_CUDA"), _nvcc()
        if cxx is None:
            raise CompileError("ld3m._C needs a C++ compiler: install one, name it in CXX, or set LD3M_EXT=0")
        if cuda == "1" and nvcc is None:
            raise CompileError("LD3M_CUDA=1 needs nvcc in PATH or under CUDA_HOME")
        if nvcc is None or cuda == "0":
            return self._build(ext, cxx, None)
        try:
            self._build(ext, cxx, nvcc)
        except CompileError as error:
            if cuda == "1":
                raise
            warnings.warn(f"ld3m._C is built without CUDA: {error}", stacklevel=1)
            self._build(ext, cxx, None)

    def _build(self, ext: Extension, cxx: str, nvcc: str | None) -> None:
        import ninja  # here, not at the top: an isolated pip reads setup.py before it has them
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ("cuda" if nvcc else "cpp")
        for path in (target.parent, folder):
            path.mkdir(parents=True, exist_ok=True)
        python = f"-isystem {sysconfig.get_path('include')} -isystem {pybind11.get_include()}"
        openmp = "-fopenmp" if sys.platform == "linux" else ""
        flags = f"-O3 -std=c++17 -MMD -MF $out.d -c $in -o $out -DLD3M_VERSION='\"{VERSION}\"'"
        code = "-fPIC -fvisibility=hidden -fno-math-errno -Wall"  # errno would keep roots out of vectors
        cpp = f"{cxx} {python} {code} {openmp} {flags} {os.environ.get('CXXFLAGS', '')}"
        link = f"{cxx} -shared $in -o $out {openmp} {os.environ.get('LDFLAGS', '')}"
        if sys.platform == "darwin":
            link += " -undefined dynamic_lookup"
        rules = {"cpp": cpp, "link": link}
        if nvcc:  # it links the CUDA runtime statically: ld3m._C loads on a machine without GPU or driver
            rules["cpp"] += f""" -DLD3M_CUDA '-DLD3M_CUDA_ARCHS="{",".join(_archs())}"'"""
            rules["cu"] = f"{nvcc} -Xcompiler -fPIC,-fvisibility=hidden {_gencode()} {flags}"
            rules["link"] = f"{nvcc} -shared $in -o $out -Xlinker --exclude-libs=ALL -lgomp"
        lines = [f"rule {name}\n command = {command}" for name, command in rules.items()]
        lines = [line if " link" in line[:10] else f"{line}\n depfile = $out.d\n deps = gcc" for line in lines]
        objects = []
        for source in (ROOT / name for name in ext.sources):
            if source.suffix[1:] in rules:
                objects.append(f"{source.name}.o")
                lines.append(f"build {objects[-1]}: {source.suffix[1:]} {_escape(source)}")
        lines.append(f"build {_escape(target)}: link {' '.join(objects)}\n")
        (folder / "build.ninja").write_text("\n".join(lines), encoding="utf-8")
        if subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder]).returncode:
            raise CompileError("the compiler's message is above; LD3M_EXT=0 leaves ld3m._C out")


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def _archs() -> list[str]:
    return os.environ.get("LD3M_CUDA_ARCHS", "75 80 86 89 90").split()


def _gencode() -> str:
    archs = _archs()
    codes = [f"arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # PTX, for what comes later
    return " ".join(f"-gencode {code}" for code in codes)


def _escape(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _extensions() -> list[Extension]:
    wanted = {os.environ.get("LD3M_EXT"), os.environ.get("LD3M_CUDA")}
    if os.environ.get("LD3M_EXT") == "0":
        if "1" in wanted:
            raise SystemExit("LD3M_CUDA=1 insists on a part of ld3m._C, which LD3M_EXT=0 leaves out; unset one of them")
        return []
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir())
    sources = [name for name in names if name.endswith((".cpp", ".cu"))]
    headers = [name for name in names if name.endswith(".h")]  # `depends` puts them into the sdist
    return [Extension("ld3m._C", sources, depends=headers, optional="1" not in wanted)]


TEST = [
    "triton; sys_platform == 'linux'",  # its interpreter runs the kernels on a CPU
    "pytest",
    "pytest-benchmark",  # regression tests that count work
    "pytest-cov",  # what no test reaches
    "hypothesis",  # laws over many inputs
    "datasets",  # as a source of data
    "pyright==1.1.414",  # what type checkers see of the keywords
    "setuptools>=77",  # with the next two, to build a clone without isolation, and so without a network
    "pybind11>=2.13",
    "ninja",
]

setup(
    name="ld3m",
    version=VERSION,
    description="Distil an image data set into a few synthetic images per class through a frozen diffusion model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ld3m authors",
    url="https://arxiv.org/abs/2403.03881",
    project_urls={
        "Paper": "https://arxiv.org/abs/2403.03881",
        "Evaluation of GLaD": "https://arxiv.org/abs/2305.01649",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="MIT",
    license_files=["LICENSE", "ld3m/data/embedded/LICENSE"],
    python_requires=">=3.11",
    packages=["ld3m.kernels", *find_packages(include=["ld3m", "ld3m.*"], exclude=["ld3m.kernels*"])],
    package_dir={"ld3m.kernels": "kernels"},
    package_data={
        "ld3m": ["py.typed", "_C.pyi"],
        "ld3m.data": ["ilsvrc.txt", "embedded/*"],
        "ld3m.priors": ["embedded/*", "embedded/*/*"],
    },
    ext_modules=_extensions(),
    cmdclass={"build_ext": NinjaBuild},
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
        "xformers": ["xformers; sys_platform == 'linux'"],  # attention="xformers", for comparison: never needed
        "timm": ["timm"],  # `--networks timm:NAME`, which no test needs
        "test": TEST,
        "dev": [
            *TEST,
            "ruff==0.17.6",  # lint and format
            "pyright==1.1.414",  # types
            "types-PyYAML==6.0.12.20261122",  # of PyYAML and, below, of tqdm: neither has annotations of its own
            "types-tqdm==4.70.0.20261106",
            "import-linter==2.17",  # which room may import which
            "pre-commit==4.7.0",  # the three above before each commit
        ],
        "docs": [
            "mkdocs-material",  # the pages
            "mkdocstrings[python]",  # the API reference from docstrings
        ],
    },
    entry_points={"console_scripts": ["ld3m = ld3m.cli:main"]},
)
