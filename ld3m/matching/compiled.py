"""Functions through torch.compile, with a way back where that fails."""

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled whole, for fixed shapes; once that fails, eager for good, with one logged reason.

    Compiled code is kept on disk, so that the next process has it in seconds instead of minutes.
    """
    # torch's own default is a temporary folder, which does not survive a restart of the machine.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "ld3m" / "compiled"))
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to import

    call = torch.compile(function, fullgraph=True, dynamic=False)
    failed = False

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return call(*arguments, **options)
            # InductorError is a TorchDynamoException, too many shapes in one process is not.
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                failed = True
                logger.warning("%s runs eager: it does not compile (%s)", function.__name__, str(error).splitlines()[0])
        return function(*arguments, **options)

    return run
