"""The gradient primitive: derivatives of functions of weight gradients, without a graph of a graph.

For D(g) with g = ∇_θ ℓ(θ, x) and v = ∂D/∂g, the directional derivative s(θ, x; v) = d/dt ℓ(θ + t v, x) at t = 0 has
∂D/∂x = ∇_x s and ∂D/∂θ = ∇_θ s. Mixed derivatives commute, so both are d/dt of the first-order gradients
(∇_x ℓ, ∇_θ ℓ)(θ + t v, x), and s is d/dt of ℓ: a forward-mode pass over an ordinary backward pass (Pearlmutter 1994).
The other order, a backward pass over a forward-mode one, keeps more in memory, and torch 2.13 gets it wrong without a
word for layer norm and for batch norm in train mode. Compiled code alone differentiates the first-order gradients
backwards, since torch.compile cannot trace group norm in forward mode.

Weights are explicit: dictionaries of detached tensors by parameter name. A network with active dropout draws its masks
from torch's global generators, as always; `rng_state` and `replayed` give a second pass the masks of the first.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, grad_and_value, jvp, vmap
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # of all sizes
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import get_device_states, set_device_states

from ld3m.networks import fused
from ld3m.ops.backends import is_transformed

Weights = dict[str, Tensor]


def weights_of(network: nn.Module) -> Weights:
    """Return the network's parameters, detached: whatever their `requires_grad`, nothing here writes their `.grad`."""
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def buffers_of(network: nn.Module) -> Weights:
    """Return copies of the network's buffers, for batch norm in train mode to write its running statistics into."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def cross_entropy(network: nn.Module, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy ℓ of the network with these weights."""
    logits = functional_call(network, {**weights, **buffers_of(network)}, (images,))
    return F.cross_entropy(logits, labels)


def gradient(
    network: nn.Module, weights: Weights, images: Tensor, labels: Tensor, names: Iterable[str] | None = None
) -> Weights:
    """Return ∇_θ ℓ for the weights in `names`, by default for all, to be differentiated no further.

    Inside torch.func transforms and torch.compile, which autograd cannot be called in, `torch.func.grad` does it;
    elsewhere autograd does, on the network's fused ops.
    """
    leaves = {name: weights[name].detach() for name in (weights if names is None else names)}
    if torch.compiler.is_compiling() or is_transformed():

        def loss_of(leaves: Weights) -> Tensor:
            return cross_entropy(network, {**weights, **leaves}, images, labels)

        return grad(loss_of)(leaves)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    with torch.enable_grad():
        loss = cross_entropy(fused(network), {**weights, **leaves}, images, labels)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def directional(
    network: nn.Module,
    weights: Weights,
    direction: Weights,
    images: Tensor,
    labels: Tensor,
    *,
    in_weights: bool = False,
) -> tuple[Tensor, Tensor, Weights | None]:
    """Return s = ⟨∇_θ ℓ, direction⟩, ∇_x s and, with `in_weights`, ∇_θ s for the weights in `direction`, else None."""
    argnums = (0, 1) if in_weights else (0,)
    images = images.contiguous()  # forward mode takes no other layout in group norm, and a decoder may give one
    moved = {name: weights[name] for name in direction}

    def loss(images: Tensor, moved: Weights) -> Tensor:
        return cross_entropy(network, {**weights, **moved}, images, labels)

    def slope(images: Tensor, moved: Weights) -> Tensor:
        slopes = grad(loss, argnums=1)(images, moved)
        return cast(Tensor, sum((slopes[name] * direction[name]).sum() for name in direction))

    with torch.no_grad():  # nothing outside the transforms records the pass
        if torch.compiler.is_compiling():  # no forward mode, see above; what is kept is the compiler's choice
            gradients, along = grad_and_value(slope, argnums)(images, moved)
        else:
            first_order = partial(grad_and_value(loss, argnums), images)
            gradients, along = jvp(first_order, (moved,), (direction,))[1]
    return along, gradients[0], gradients[1] if in_weights else None


def over_classes(function: Callable[..., Any], *stacked: object) -> Any:
    """Call a function of one class for all rows of the arguments, tensors or dictionaries of them; stack its results.

    A single class is not batched, so that any network goes, whatever it draws or writes on its way.
    """
    if len(tree_leaves(stacked)[0]) > 1:
        return vmap(function)(*stacked)
    return tree_map(_alone, function(*tree_map(_first, stacked)))


def _first(stacked: Tensor) -> Tensor:
    return stacked[0]


def _alone(result: Tensor) -> Tensor:
    return result[None]


def with_gradients(value: Tensor, inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Return `value` as a function of `inputs` whose gradients are known already.

    Args:
        value: the loss, a scalar or one per row of the inputs.
        gradients: like `inputs`, each entry the derivative of the loss of its row.
    """
    return _Known.apply(value, gradients, *inputs)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as `once_differentiable` types it
        ctx: Any, cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows = [cotangent.reshape(cotangent.shape + (1,) * (g.ndim - cotangent.ndim)) for g in ctx.saved_tensors]
        return None, None, *(row * g for row, g in zip(rows, ctx.saved_tensors, strict=True))


RngState = tuple[Tensor, list[int], list[Tensor]]


def rng_state(network: nn.Module, images: Tensor) -> RngState | None:
    """Return the state of torch's global generators if the network has active dropout, else None."""
    if not any(map(_is_active_dropout, network.modules())):
        return None
    return torch.get_rng_state(), *get_device_states(images)


def sees_whole_batches(network: nn.Module) -> bool:
    """Whether an image's result depends on the others of its batch: batch norm in train mode, or active dropout.

    Neither chunks of a batch nor several classes can then share a pass, which would draw or write other things.
    """
    return any(_is_active_dropout(m) or (isinstance(m, _NormBase) and m.training) for m in network.modules())


def _is_active_dropout(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.training and module.p > 0


@contextlib.contextmanager
def replayed(state: RngState | None) -> Generator[None]:
    """Draw inside the block what was drawn after `rng_state`, and leave the global generators as they are."""
    if state is None:
        yield
        return
    cpu, devices, states = state
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield
