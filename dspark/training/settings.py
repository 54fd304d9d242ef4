"""What a training run is told."""

import math
from dataclasses import dataclass, field

from dspark.training.losses import LossWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """One run: `steps` updates on `batch_size` sequences with `num_anchors` anchors each.

    `accumulate` parts of a batch are read one after the other, and their gradients added: the update is the same, to rounding,
    in about as much less memory.
    The learning rate climbs to `learning_rate` over the first `warm_up` of the steps and falls along a cosine to zero.
    A checkpoint is written every `checkpoint_every` steps and at the end.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    num_anchors: int = 512
    learning_rate: float = 6e-4
    warm_up: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "num_anchors", "checkpoint_every"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1. Raise it.")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate} and batch_size {self.batch_size}; each part of a batch has a sequence. "
                "Lower accumulate."
            )
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be positive and finite. Try the default.")
        if not self.weights.decay > 0:
            raise ValueError(f"decay is {self.weights.decay}; it must be positive. Try 4.")

    def rate_at(self, step: int) -> float:
        """The learning rate of update `step` (0 to steps - 1)."""
        warm_up = max(1, round(self.warm_up * self.steps))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
