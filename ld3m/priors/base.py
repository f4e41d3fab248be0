"""The interface of every prior: encode, quantise, decode, embed a class, predict the noise."""

import html

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError, InputError
from ld3m.ops.nearest_code import nearest_code
from ld3m.priors.architecture import DiffusersModule
from ld3m.priors.denoiser_call import DenoiserCall
from ld3m.priors.frozen import ExecutionConfig, FrozenNetworks, GraphedCall


class Prior:
    """A frozen latent diffusion model: first stage, denoiser and, where it has classes, their embeddings.

    Inputs may have another floating dtype than the weights: they are cast on the way in and the results cast back, so
    that a float32 state can be driven by a bfloat16 network. No method forms a gradient of a weight.

    Args:
        name: for logs and result files.
        first_stage: diffusers `VQModel` or `AutoencoderKL`.
        denoiser: called as `denoiser(latents, timestep)` or `denoiser(latents, timestep, conditioning)`; returns an
            object with the noise prediction as `.sample`.
        class_embedding: weight (rows, dim), one token a class; None when unconditional.
        alphas_cumprod: (1000,) float64.
        scale_factor: latents = scale_factor × the first stage's own.
        native_resolution: image pixels the denoiser was trained on.
        null_class: row of the unconditional class; the last row when None.
        class_names: names of the classes in order, the null class left out.
    """

    def __init__(
        self,
        *,
        name: str,
        first_stage: DiffusersModule,
        denoiser: DiffusersModule,
        class_embedding: nn.Embedding | None,
        alphas_cumprod: Tensor,
        scale_factor: float,
        native_resolution: int,
        null_class: int | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.name = name
        self.first_stage = first_stage
        self.denoiser = denoiser
        self.class_embedding = class_embedding
        self.alphas_cumprod = alphas_cumprod.double().cpu()
        self.scale_factor = scale_factor
        self.native_resolution = native_resolution
        self.class_names = class_names
        for module in self.modules():
            module.eval().requires_grad_(False)

        self.is_vq = hasattr(first_stage, "quantize")
        self.downsample = 2 ** (len(first_stage.config.block_out_channels) - 1)
        self.latent_channels = first_stage.quantize.vq_embed_dim if self.is_vq else first_stage.config.latent_channels
        rows = None if class_embedding is None else class_embedding.num_embeddings
        self.num_classes = None if rows is None else rows - 1
        self.conditioning_shape = None if class_embedding is None else (1, class_embedding.embedding_dim)
        self.null_class = rows - 1 if null_class is None and rows is not None else null_class
        self.frozen = FrozenNetworks(denoiser, first_stage, None)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for module in self.modules() for parameter in module.parameters())
        side = self.native_resolution // self.downsample
        classes = f"{self.num_classes} classes" if self.num_classes else "unconditional"
        return (
            f"Prior({self.name!r}, {classes}, {self.native_resolution} px, "
            f"latents {self.latent_channels} × {side} × {side}, {count / 1e6:.1f} M parameters, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def _repr_html_(self) -> str:
        names = "" if self.class_names is None else ", ".join(self.class_names[:20])
        more = f" and {len(self.class_names or ()) - 20} more" if len(self.class_names or ()) > 20 else ""
        return f"<p>{html.escape(repr(self))}</p>" + (f"<p>Classes: {html.escape(names)}{more}</p>" if names else "")

    def modules(self) -> list[nn.Module]:
        """Return first stage, denoiser and, where there is one, the class embedding."""
        parts = (self.first_stage, self.denoiser, self.class_embedding)
        return [module for module in parts if module is not None]

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Prior":
        """Move and cast the weights in place; return the prior itself."""
        for module in self.modules():
            nn.Module.to(module, device=device, dtype=dtype)  # diffusers' own `to` warns about casts that are meant
        return self if self.frozen.execution is None else self.set_execution(self.frozen.execution)

    def set_execution(self, execution: ExecutionConfig | None) -> "Prior":
        """Run the networks by their frozen counterparts, which leave out what input gradients do not need.

        The modules stay what they are, to be moved, saved or run by others; None runs them as they are again. A
        network without a frozen counterpart runs as it is. Returns the prior itself.

        Raises:
            ConfigError: CUDA graphs are asked for and cannot be had.
            BackendError: an attention that is not installed.
        """
        self.frozen = FrozenNetworks(self.denoiser, self.first_stage, execution)
        return self

    def streamline(self, execution: ExecutionConfig | None) -> "Prior":
        """Set the execution; deprecated, the former name of `set_execution`."""
        return self.set_execution(execution)

    @property
    def latent_multiple(self) -> int:
        """The number that divides each side of the latents; a U-Net with cross-attention takes any side."""
        config = self.denoiser.config
        if "patch_size" in config:  # a DiT
            return config.patch_size
        return 1 if "cross_attention_dim" in config else 2 ** (len(config.block_out_channels) - 1)

    def require_resolution(self, resolution: int) -> None:
        """Raise ConfigError unless images of that side, in pixels, have latents of a whole side."""
        if resolution % self.downsample:
            raise ConfigError(
                f"resolution must be divisible by {self.downsample}, the first stage's factor in {self.name}; got "
                f"{resolution}"
            )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images without gradient.

        Args:
            images: (B, 3, H, W) in [−1, 1], H and W divisible by `downsample`.

        Returns:
            Latents (B, c, H/f, W/f): before quantisation (VQ), or the scaled mean (KL).
        """
        self._check_images(images)
        encoded = self.first_stage.encode(images.to(self.dtype))
        latents = encoded.latents if self.is_vq else encoded.latent_dist.mean
        return (latents * self.scale_factor).to(images.dtype)

    def quantize(self, latents: Tensor) -> Tensor:
        """Move latents to their nearest codes with the identity as gradient; a KL prior returns them unchanged."""
        if not self.is_vq:
            return latents
        codebook = self.first_stage.quantize.embedding.weight.to(latents.dtype)
        rows = latents.detach().movedim(1, -1) / self.scale_factor  # (B, c, h, w) -> (B, h, w, c)
        codes = codebook[nearest_code(rows.flatten(0, 2), codebook)].view_as(rows).movedim(-1, 1)
        return latents + (self.scale_factor * codes - latents).detach()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, c, h, w) to images (B, 3, f·h, f·w), about [−1, 1] and not clamped; VQ quantises first."""
        scaled = self.quantize(latents).to(self.dtype) / self.scale_factor
        if self.frozen.decoder is not None:
            return self.frozen.decoder(scaled).to(latents.dtype)
        options = {"force_not_quantize": True} if self.is_vq else {}  # it has been done
        return self.first_stage.decode(scaled, **options).sample.to(latents.dtype)

    def embed(self, class_ids: Tensor) -> Tensor:
        """Embed class ids (B,) int64, 0 … num_classes, null included, as conditioning (B, tokens, dim)."""
        if self.class_embedding is None:
            raise InputError(f"embed needs a class-conditional prior; {self.name} has no classes")
        if class_ids.dtype not in (torch.int32, torch.int64) or class_ids.ndim != 1:
            raise InputError(
                f"class_ids are int64 of shape (B,), got {class_ids.dtype} {tuple(class_ids.shape)}; "
                "convert them with .long(), several with .flatten()"
            )
        rows = self.class_embedding.num_embeddings
        if class_ids.numel() and (int(class_ids.min()) < 0 or int(class_ids.max()) >= rows):
            raise InputError(
                f"class_ids go from 0 to {rows - 1} for {self.name}, got {class_ids.tolist()}; choose ids in that range"
            )
        return self.class_embedding(class_ids.to(self.device))[:, None, :]  # (B, dim) -> (B, 1, dim)

    def null_conditioning(self, n: int) -> Tensor:
        """Return the unconditional embedding for n rows, (n, tokens, dim)."""
        if self.class_embedding is None:
            raise InputError(f"null_conditioning needs a class-conditional prior; {self.name} has no classes")
        return self.class_embedding.weight[self.null_class or 0].expand(n, 1, -1)  # no index to be moved to the device

    def project(self, conditioning: Tensor) -> Tensor:
        """Return what the denoiser reads of conditioning (B, tokens, dim), the same at every step; differentiable.

        `predict_noise` and `evaluate` take either. The conditioning itself, where nothing can be computed beforehand.
        """
        return conditioning if self.frozen.denoiser is None else self.frozen.denoiser.project(conditioning)

    @property
    def learns_variance(self) -> bool:
        """Whether the denoiser has channels for the variances of ancestral steps, as those of DiT have."""
        return self.denoiser.config.out_channels == 2 * self.latent_channels

    def predict_noise(
        self, latents: Tensor, timestep: int, conditioning: Tensor | None = None, *, with_variance: bool = False
    ) -> Tensor:
        """Predict ε̂ (B, c, h, w) in noisy latents at an integer timestep 0 … 999.

        Args:
            latents: (B, c, h, w).
            timestep: index into `alphas_cumprod`.
            conditioning: (B, tokens, dim), or its `project`ion; required by a class-conditional prior, refused by an
                unconditional one.
            with_variance: return the channels that `learns_variance` tells of as well, (B, 2c, h, w).
        """
        self._check_call(timestep, conditioning)
        if with_variance and not self.learns_variance:
            raise InputError(f"{self.name} has learned no variances; choose fixed-small or fixed-large")
        channels = (1 + with_variance) * self.latent_channels
        if (frozen := self.frozen.denoiser) is not None:
            return frozen(latents, frozen.row(timestep), conditioning, channels)
        inputs = (latents.to(self.dtype), timestep)
        if conditioning is not None:
            inputs += (conditioning.to(self.dtype),)
        # Models with learned variances return 2c channels; the second half is not the noise.
        return self.denoiser(*inputs).sample[:, :channels].to(latents.dtype)

    def evaluate(
        self, latents: Tensor, timestep: int, conditioning: Tensor | None, *, wants: tuple[bool, bool]
    ) -> DenoiserCall | GraphedCall:
        """Predict like `predict_noise`, and keep what the wanted gradients, in (latents, conditioning), need."""
        self._check_call(timestep, conditioning)
        frozen, graphs = self.frozen.denoiser, self.frozen.graphs
        if frozen is not None and graphs is not None:
            return graphs.evaluate(latents, frozen.row(timestep), conditioning, wants)
        latents = latents.detach().requires_grad_(wants[0])
        if conditioning is not None:
            conditioning = conditioning.detach().requires_grad_(wants[1])
        with torch.set_grad_enabled(any(wants)):
            if frozen is None:
                output = self.predict_noise(latents, timestep, conditioning)
            else:  # not through predict_noise: few calls lie between a step of a chain and a convolution
                output = frozen(latents, frozen.row(timestep), conditioning)
        return DenoiserCall((latents, conditioning), output)

    def _check_call(self, timestep: int, conditioning: Tensor | None) -> None:
        if not isinstance(timestep, Tensor) and timestep not in range(len(self.alphas_cumprod)):  # one may be on a GPU
            raise InputError(
                f"timestep is a whole number from 0 to {len(self.alphas_cumprod) - 1}, an index into alphas_cumprod; "
                f"got {timestep!r}"
            )
        if (conditioning is None) == (self.conditioning_shape is None):
            return
        if conditioning is None:
            raise InputError(
                f"{self.name} is class-conditional: pass conditioning (B, tokens, dim), e.g. prior.embed(ids)"
            )
        raise InputError(f"{self.name} is unconditional: it takes no conditioning, got {tuple(conditioning.shape)}")

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images are (B, 3, H, W) in [-1, 1], got {tuple(images.shape)}")
        if images.shape[2] % self.downsample or images.shape[3] % self.downsample:
            raise ConfigError(
                f"resolution must be divisible by {self.downsample}, the first stage's factor in {self.name}; "
                f"got {images.shape[2]}x{images.shape[3]}"
            )
