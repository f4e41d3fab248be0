"""Settings of the networks that are trained on real images: experts and teachers."""

from dataclasses import dataclass

from ld3m.config.checks import check_above_zero, check_epochs
from ld3m.config.fields import Settings


@dataclass(frozen=True)
class ExpertTraining(Settings):
    """Settings of `ld3m experts`."""

    network: str = "ConvNet"
    """Network to train."""
    width: int | None = None
    """Its width; that of `ld3m distill --algorithm mtt` at this resolution when not given."""
    num_experts: int = 100
    """Trajectories in all."""
    epochs: int = 15
    """Epochs of each."""
    lr: float = 0.01
    """Learning rate (SGD)."""
    batch_size: int = 256
    """Images a step."""
    augment: bool = True
    """Differentiable augmentation (DSA) of every batch."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(num_experts=self.num_experts, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)


@dataclass(frozen=True)
class TeacherTraining(Settings):
    """Settings of `ld3m teacher`."""

    network: str = "ConvNet"
    """Network to train, perhaps with a width suffix such as -w0.5."""
    epochs: int = 15
    """Passes over the training images, at least 2."""
    lr: float = 0.03
    """Highest learning rate (SGD with momentum, rising and falling once)."""
    batch_size: int = 64
    """Images a step."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_epochs(self.epochs, "epochs")
        check_above_zero(lr=self.lr, batch_size=self.batch_size)
