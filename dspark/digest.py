"""Digests by which a model, and what was made with it, recognise each other."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of a configuration, and no part of what the model computes.
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def digest_of(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 of named tensors and of what is said about them, in hexadecimal.

    Of a tensor count its name, dtype and shape, and the sums of the bits of its rows: exact on every device, read once, and any
    change of one element changes it.
    """
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        bits = tensor.view(BITS[tensor.element_size()])
        sums = bits.sum(tuple(range(1, bits.dim())), dtype=torch.int64) if bits.dim() > 1 else bits
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()


def model_digest(model: PreTrainedModel) -> str:
    """The digest of a model's configuration and weights, as they are loaded."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in INCIDENTAL}
    return digest_of(model.state_dict(), json.dumps(config, sort_keys=True, default=str))
