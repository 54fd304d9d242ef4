"""What a training run is told."""

import math
from dataclasses import dataclass, field

from dspark.training.losses import LossWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """One run: `steps` updates on `batch_size` sequences with `num_anchors` anchors each.

    The learning rate climbs to `learning_rate` over the first `warm_up` of the steps and falls along a cosine to zero.
    A checkpoint is written every `checkpoint_every` steps and at the end.
    """

    steps: int
    batch_size: int = 8
    num_anchors: int = 512
    learning_rate: float = 6e-4
    warm_up: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 500
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 1), ("batch_size", 1), ("num_anchors", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} is {value}; it must be at least {smallest}. Raise it.")
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
