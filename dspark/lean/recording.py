"""Forwards of fixed shapes, recorded once and replayed: on a GPU the host launches one CUDA graph instead of a thousand kernels.

Verified tokens are few, so the host needs longer to ask for a forward than the device to compute it. Every shape is computed
plainly once, recorded when it comes again, and compared with the plain forward before it is trusted.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from dspark.lean.agreement import agree

Outputs: TypeAlias = tuple[Tensor, Tensor | None]
"""Logits `[B, T, V]` and features `[B, T, F]` or None."""

MOST_RECORDINGS = 64  # of one context


class Step(Protocol):
    """A forward whose work depends on the shapes of its inputs only, over memory that stays where it is."""

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Outputs:
        """Read `[B, T]` at `positions` `[B, T]`."""


class Recorder:
    """Records CUDA graphs; one for all contexts of a model, so that a graph that disagrees ends them for all.

    The graphs share their memory for intermediate results: one runs at a time, and its outputs are copied before the next.
    """

    def __init__(self) -> None:
        self.is_trusted = True
        self.pool: Any = None

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """Record what `run` asks of the device: what asks it again, and where the outputs then are, always the same memory."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs


class Recording:
    """One step for one shape."""

    def __init__(self, step: Step, token_ids: Tensor, positions: Tensor, recorder: Recorder) -> None:
        self.token_ids, self.positions = token_ids.clone(), positions.clone()
        self.replay, self.outputs = recorder.record(lambda: step(self.token_ids, self.positions))

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Outputs:
        """See `Step`; in memory of its own."""
        self.token_ids.copy_(token_ids)
        self.positions.copy_(positions)
        self.replay()
        logits, features = self.outputs
        return logits.clone(), None if features is None else features.clone()


class Recordings:
    """What one context has recorded, by `[B, T]`; all of it is void when its memory is another."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.memory: tuple[Tensor, ...] = ()
        self.known: dict[tuple[int, ...], Recording | None] = {}  # None: seen once

    def run(self, step: Step, token_ids: Tensor, positions: Tensor, memory: tuple[Tensor, ...]) -> Outputs:
        """`step`, which works on `memory`: from its recording where there is one."""
        if len(memory) != len(self.memory) or any(map(lambda new, old: new is not old, memory, self.memory)):
            self.memory, self.known = memory, {}
        shape = tuple(token_ids.shape)
        recording = self.known.get(shape)
        if recording and self.recorder.is_trusted:
            return recording(token_ids, positions)
        outputs = step(token_ids, positions)
        if shape in self.known and self.recorder.is_trusted:
            self.known[shape] = self._recorded(step, token_ids, positions, outputs[0])
        elif len(self.known) < MOST_RECORDINGS:
            self.known[shape] = None
        return outputs

    def _recorded(self, step: Step, token_ids: Tensor, positions: Tensor, logits: Tensor) -> Recording | None:
        """A recording that gives the `logits` of the plain step; None, and no other from now on, where it does not."""
        try:
            recording = Recording(step, token_ids, positions, self.recorder)
            if agree(recording(token_ids, positions)[0], logits):
                return recording
            if not bool(logits.isfinite().any()):
                return None  # nothing to compare
            problem = "its replay computes something else"
        except RuntimeError as error:  # whatever keeps a device from recording, the plain forward serves
            problem = str(error)
        self.recorder.is_trusted = False
        warnings.warn(
            f"a forward could not be recorded as a CUDA graph ({problem}); it is launched kernel by kernel from now on. "
            "Results are right, only slower.",
            stacklevel=2,
        )
        return None
