"""What the machine can do at best: bytes copied and numbers multiplied a second, and what a forward needs of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from verify.bench.clock import Clock

COPY_BYTES = 256 * 1024**2  # far more than any cache holds
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Best of some repeats: bytes a second in a copy (read and written) and floating-point operations a second in a matmul."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


def measure_machine(device: torch.device, dtype: torch.dtype, *, clock: Clock) -> Machine:
    """Measure both on the device; matmuls in the dtype of the models."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    size = MATMUL_SIZE.get(device.type, 1024)
    left = torch.ones(size, size, dtype=dtype, device=device)  # [N, N]
    return Machine(
        copy_bytes_per_s=2 * COPY_BYTES / _best(lambda: sink.copy_(source), clock),
        matmul_flops_per_s=2 * size**3 / _best(lambda: left @ left, clock),
    )


def bytes_per_forward(model: PreTrainedModel) -> int:
    """Bytes of weights that one forward must read: all but the embeddings, of which it looks up a few rows.

    Embeddings that are also the head are read whole. The cache is not counted.
    """
    embedding: Any = model.get_input_embeddings()
    left_out = {id(embedding.weight)} if isinstance(embedding, nn.Module) and not _is_tied(model) else set()
    unique = {id(each): each for each in model.parameters() if id(each) not in left_out}
    return sum(each.numel() * each.element_size() for each in unique.values())


def flops_per_token(model: PreTrainedModel) -> int:
    """Floating-point operations of one position: two for every weight of a matrix that is multiplied."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    inside = sum(
        each.numel() for each in model.parameters() if each.ndim == 2 and each is not getattr(embedding, "weight", None)
    )
    return 2 * (inside + (head.weight.numel() if _is_tied(model) else 0))


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the embeddings are also the head."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return head is not None and embedding is not None and head.weight is embedding.weight


def _best(work: Callable[[], object], clock: Clock) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        started = clock.now()
        work()
        times.append(clock.now() - started)
    return min(times)
