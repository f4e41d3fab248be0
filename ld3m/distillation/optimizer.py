"""Gradient descent with momentum whose last step can be taken back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_State = dict[str, tuple[Tensor, Tensor | None]]  # a parameter's values, and its momentum once it has one


class Descent:
    """SGD with momentum, as `torch.optim.SGD` computes it, between two states of its own.

    A step reads one and writes the other, and `keep` says that the other one counts from then on: until then the state
    before the step is whole, whatever stops it, and nothing is cloned.

    Args:
        groups: (name, leaf, learning rate).
    """

    def __init__(self, groups: Sequence[tuple[str, Tensor, float]], momentum: float) -> None:
        self.parameters = {name: parameter for name, parameter, _ in groups}
        self._rates, self._momentum = {name: rate for name, _, rate in groups}, momentum
        self._states: list[_State] = [{name: (p.detach(), None) for name, p in self.parameters.items()}, {}]
        self._kept = 0, 0  # iterations that are done, and which of the states they led to

    @property
    def iterations(self) -> int:
        """Return how many iterations are done and kept."""
        return self._kept[0]

    def zero_grad(self) -> None:
        """Forget the gradients; their memory stays, for the next ones."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Write the parameters after a step along their gradients; `undo` leads back until `keep` is called."""
        now, after = self._states[self._kept[1]], self._states[1 - self._kept[1]]
        for name, parameter in self.parameters.items():
            value, momentum = now[name]
            new_value, new_momentum = after.get(name, (None, None))
            new_momentum = torch.empty_like(value) if new_momentum is None else new_momentum
            new_value = torch.empty_like(value) if new_value is None else new_value
            assert parameter.grad is not None  # every parameter takes part in the loss
            if momentum is None:
                new_momentum.copy_(parameter.grad)
            else:
                torch.mul(momentum, self._momentum, out=new_momentum).add_(parameter.grad)
            torch.add(value, new_momentum, alpha=-self._rates[name], out=new_value)
            after[name] = new_value, new_momentum
        self._show(after)

    def keep(self, iterations: int) -> None:
        """Let the last step count as one of so many iterations that are done."""
        self._kept = iterations, 1 - self._kept[1]  # a single assignment, which an interrupt cannot cut in two

    def undo(self) -> None:
        """Go back to what was kept."""
        self._show(self._states[self._kept[1]])

    def state(self) -> dict[str, Tensor]:
        """Return what was kept, values by name and momenta by momentum/name: not copies, good until the next `keep`."""
        kept = self._states[self._kept[1]]
        momenta = {f"momentum/{name}": momentum for name, (_, momentum) in kept.items() if momentum is not None}
        return {name: value for name, (value, _) in kept.items()} | momenta

    @torch.no_grad()
    def restore(self, iterations: int, state: Mapping[str, Tensor]) -> None:
        """Take values and momenta of `state` for what is kept."""
        found: _State = {}
        for name, parameter in self.parameters.items():
            momentum = state.get(f"momentum/{name}")
            found[name] = parameter.detach().copy_(state[name]), None if momentum is None else momentum.to(parameter)
        self._states, self._kept = [found, {}], (iterations, 0)
        self.undo()

    def _show(self, state: _State) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = state[name][0]
