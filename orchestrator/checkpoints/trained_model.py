"""The model of a checkpoint, in memory, as the training goes on with it."""

import torch

from modules.model import GPT
from orchestrator.checkpoints.export import Exportable
from orchestrator.distributed.training_state import MASTER, Fragment


def trained_model(source: Exportable) -> GPT:
    """Return the model in evaluation mode, on the GPU if there is one, with float32 weights; adapters are merged.

    Raises:
        ArtifactError: a file of the checkpoint is missing or damaged.
    """
    model = GPT(source.exported, source.vocab_size)
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    source.weights.fill(Fragment(name, MASTER, 0, values.numel(), values.view(-1)) for name, values in parameters)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
