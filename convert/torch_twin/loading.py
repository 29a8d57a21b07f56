"""The torch twin with the weights of a checkpoint."""

from __future__ import annotations

import numpy as np
import torch

from convert.to_torch import state_dict
from convert.torch_twin.model import TorchSam
from edgesam_jax.checkpoints.model import Model


def load_twin(model: Model) -> TorchSam:
    """Return the torch twin of a model with its weights, in evaluation mode and without gradients.

    Raises:
      UsageError: the variables don't match ``model.config``.
    """
    sam = TorchSam(model.config).eval().requires_grad_(False)
    sam.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state_dict(model).items()}, strict=True)
    return sam
