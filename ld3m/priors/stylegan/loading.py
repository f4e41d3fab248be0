"""StyleGAN-XL generators by name, with random weights, or from a safetensors file."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ld3m.errors import CheckpointError, ConfigError
from ld3m.priors.folder import load_weights
from ld3m.priors.stylegan.generator import FourierInput, Mapping, StyleGAN, Synthesis, SynthesisLayer
from ld3m.priors.stylegan.layers import FIRST_CUTOFF, SHAPES, TAPS, Design, LayerSpec, design
from ld3m.runtime import seeds
from ld3m.runtime.devices import resolve_device, resolve_dtype
from ld3m.runtime.storage import load_tensors

NAMES = tuple(f"random:{name}" for name in SHAPES)


def load_stylegan(
    source: "str | Path | StyleGAN", *, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float32
) -> StyleGAN:
    """Load a frozen StyleGAN-XL generator.

    Args:
        source: "random:stylegan-xl-128", "random:stylegan-xl-256" (the published structure for ImageNet),
            "random:stylegan-128", "random:stylegan-256" (one plain stage without classes, as for GLaD's "Random"),
            "random:stylegan-32" (a small one), a `.safetensors` file of a generator's state, or a `StyleGAN` (moved and
            cast in place).

    Raises:
        ConfigError: an unknown name, or a device or dtype that cannot be had.
        CheckpointError: a file that is missing, damaged, or lacks tensors of a generator.
    """
    device, dtype = resolve_device(device), resolve_dtype(dtype)
    if isinstance(source, StyleGAN):
        return source.to(device=device, dtype=dtype)
    if str(source) in NAMES:
        generator = _random(str(source).removeprefix("random:"))
    elif Path(source).suffix == ".safetensors":
        generator = _from_file(Path(source).expanduser())
    else:
        raise ConfigError(
            f"a StyleGAN-XL generator is one of {', '.join(NAMES)}, or a .safetensors file of the state of one; got "
            f"{str(source)!r}"
        )
    # Folded in no less than float32, and before the weights are rounded to less.
    generator = generator.to(device=device, dtype=torch.promote_types(dtype, torch.float32)).freeze()
    return generator.to(dtype=dtype)


@torch.no_grad()
def _random(name: str) -> StyleGAN:
    """Build a named generator as it is before training, with weights that are the same for everybody."""
    shape, generator = SHAPES[name], seeds.generator(0, "random prior", name)
    designs = design(shape)
    mapping = Mapping(shape.z_dim, shape.w_dim, shape.num_classes, shape.class_dim)
    synthesis = Synthesis([layer.spec for layer in designs], shape.w_dim)
    stylegan = StyleGAN(f"random:{name}", mapping, synthesis)
    for module in stylegan.modules():
        _fill(module, generator)
    for layer, layout in zip(stylegan.layers, designs, strict=True):
        _fill_layer(layer, layout)
    synthesis.input.affine.weight.zero_()
    synthesis.input.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # no code turns or shifts the input yet
    return stylegan


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's weights, its children left out, as N(0, 1) over the learning-rate multiplier; zero the rest."""
    for tensor in module.buffers(recurse=False):
        tensor.zero_()
    for name, tensor in module.named_parameters(recurse=False):
        if name == "bias":
            tensor.zero_()
        else:
            tensor.normal_(generator=generator).div_(getattr(module, "multiplier", 1))
    if isinstance(module, FourierInput):
        module.transform.copy_(torch.eye(3))
        direction = torch.randn(module.freqs.shape, generator=generator)
        radius = direction.norm(dim=1, keepdim=True)
        # exp(−r²/2) is uniform in [0, 1] for a normal direction, and its root uniform in the disc.
        module.freqs.copy_(FIRST_CUTOFF * direction / (radius * torch.exp(radius.square() / 4)))
        module.phases.copy_(torch.rand(module.phases.shape, generator=generator) - 0.5)


def _fill_layer(layer: SynthesisLayer, layout: Design) -> None:
    layer.magnitude_ema.fill_(1)
    layer.affine.bias.fill_(1)
    if not layer.spec.is_image:
        layer.up_filter.copy_(layout.up_filter)
        layer.down_filter.copy_(layout.down_filter)


def _from_file(path: Path) -> StyleGAN:
    """Read a generator whose structure is that of the tensors in the file; what else the file holds is left alone."""
    tensors, _ = load_tensors(path)
    with torch.device("meta"):
        generator = _structure(path, tensors)
    wanted = generator.state_dict().keys()
    load_weights(generator, {key: tensor for key, tensor in tensors.items() if key in wanted}, str(path), torch.float32)
    return generator


def _structure(path: Path, tensors: dict[str, Tensor]) -> StyleGAN:
    """Read the structure off names and shapes; what then is missing or contradicts it is named with the weights."""

    def size(name: str, axis: int, otherwise: int) -> int:
        try:
            return tensors[name].shape[axis]
        except (KeyError, IndexError):
            return otherwise

    specs = _specs(path, tensors, size)
    classes = None if "mapping.embed_proj.weight" not in tensors else size("mapping.embed.weight", 0, 1000)
    w_dim = size("mapping.w_avg", -1, 512)
    z_dim = size("mapping.fc0.weight", 1, 64) // (1 if classes is None else 2)
    radial = [s.name for s in specs if len(tensors.get(f"synthesis.{s.name}.down_filter", torch.empty(0)).shape) == 2]
    return StyleGAN(
        path.name,
        Mapping(z_dim, w_dim, classes, size("mapping.embed.weight", 1, 320)),
        Synthesis(specs, w_dim, radial=radial),
    )


def _specs(path: Path, tensors: dict[str, Tensor], size: Callable[[str, int, int], int]) -> list[LayerSpec]:
    """Return the layers that are named in the file, in the order of their numbers."""
    found = (re.match(r"synthesis\.(L(\d+)_(\d+)_(\d+))\.", key) for key in tensors)
    layers = sorted({(int(m[2]), int(m[3]), int(m[4]), m[1]) for m in found if m})
    # The first cut of a chain of stages leaves out one number, see `layers.design`.
    if len(layers) < 2 or layers[-1][0] > len(layers):
        names = ", ".join(name for *_, name in layers) or "none"
        raise CheckpointError(
            f"{path} is not the whole state of a StyleGAN-XL generator: layers synthesis.L<number>_<size>_<channels> "
            f"number 0, 1, 2 … up to the image; got {names}"
        )
    specs = []
    channels, side = size("synthesis.input.weight", 0, 1), layers[0][1]
    for number, out_size, out_channels, name in layers:
        is_image = number == layers[-1][0]
        kernel = size(f"synthesis.{name}.weight", -1, 3)
        up, down = (
            1 if is_image else max(1, size(f"synthesis.{name}.{way}_filter", 0, 2 * TAPS) // TAPS)
            for way in ("up", "down")
        )
        specs.append(LayerSpec(name, channels, out_channels, side, out_size, kernel, up, down, is_image))
        channels, side = out_channels, out_size
    return specs
