"""The training loop: the frozen target reads the text and says what it would, the drafter learns to say the same."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.checkpoints import DrafterNetwork
from dspark.digest import digest_of, model_digest
from dspark.networks.attention import BlockLayer, GatedMLP
from dspark.networks.eagle3 import Eagle3Network
from dspark.training.anchors import sample_blocks
from dspark.training.checkpoint import load_latest, save_state
from dspark.training.corpus import Text
from dspark.training.gradient import backpropagate
from dspark.training.losses import Losses, total_weight
from dspark.training.metrics import plot, read, truncate
from dspark.training.outputs import block_states, first_anchor
from dspark.training.settings import TrainingSettings

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class Trainer:
    """Trains one drafter network in place; `folder` receives checkpoints, `metrics.jsonl` and `metrics.png`.

    Update s takes its sequences and anchors from (seed, s) alone, so the number of updates is the whole position in data and
    random numbers: a run that was killed continues from its latest checkpoint, on a CPU bit for bit as if it had not been.
    The target's parameters are frozen. `compile_backend` (see `torch.compile`) compiles the drafter's layers.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        network: DrafterNetwork,
        text: Text,
        *,
        settings: TrainingSettings,
        folder: Path,
        autocast: bool = False,
        compile_backend: str | Callable[..., Any] | None = None,
    ) -> None:
        self.target = CausalModel.of(target.requires_grad_(False))
        self.target.require_layers(network.feature_layers)
        self.network = network
        self.text = text
        self.settings = settings
        self.folder = folder
        self.device = self.target.device
        self.autocast = autocast
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if compile_backend is not None:
            compile_layers(network, backend=compile_backend)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
        )
        if len(text.lengths) < settings.batch_size:
            raise ValueError(
                f"the text has {len(text.lengths)} sequences and batch_size is {settings.batch_size}; a batch takes "
                "different ones. Give more text, or lower batch_size."
            )

    def run(self, *, stop_after: int | None = None) -> int:
        """Train to the end, or for at most `stop_after` more updates; returns the number of updates done in all."""
        settings = self.settings
        run = self._identity()
        step = load_latest(self.folder / CHECKPOINTS, network=self.network, optimizer=self.optimizer, run=run)
        end = settings.steps if stop_after is None else min(settings.steps, step + stop_after)
        self.folder.mkdir(parents=True, exist_ok=True)
        truncate(self.folder / METRICS, steps=step)
        self.network.train()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress, (self.folder / METRICS).open("a") as log:
            task = progress.add_task("training", total=settings.steps, completed=step)
            while step < end:
                entry = self._update(step)
                step += 1
                log.write(json.dumps({"step": step, **entry}) + "\n")
                progress.update(task, completed=step, description=f"loss {entry['loss']:.3f}")
                if step % settings.checkpoint_every == 0 or step == settings.steps:
                    log.flush()
                    save_state(
                        self.folder / CHECKPOINTS, step=step, network=self.network, optimizer=self.optimizer, run=run
                    )
        self.network.eval()
        plot(read(self.folder / METRICS), self.folder / "metrics.png")
        return step

    def _update(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(step)
        losses = self._backpropagate(step)
        norm = nn.utils.clip_grad_norm_(self.trained, self.settings.clip)
        if not norm.isfinite():
            raise ValueError(
                f"the gradient of update {step + 1} is NaN or infinite; training has diverged, or the target's logits are not "
                "finite. Lower the learning rate, or check the target and its dtype."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        scalars = torch.stack([losses.total, losses.cross_entropy, losses.distance, losses.confidence, norm])
        numbers: list[float] = torch.cat([scalars, losses.acceptance]).tolist()
        names = ("loss", "cross_entropy", "distance", "confidence", "gradient_norm")
        return {
            **{name: round(value, 6) for name, value in zip(names, numbers, strict=False)},
            "acceptance": [round(value, 5) for value in numbers[len(names) :]],
            "learning_rate": self.settings.rate_at(step),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _backpropagate(self, step: int) -> Losses:
        """Add up the gradient of one update's batch, part by part; returns its losses."""
        settings = self.settings
        text = self._batch(step)
        blocks = sample_blocks(
            text.token_ids,
            text.lengths,
            text.prompt_lengths,
            num_anchors=settings.num_anchors,
            block_size=self.network.block_size,
            generator=self._generator("anchors", step),
            first_anchor=first_anchor(self.network),
        ).to(self.device)
        token_ids = text.token_ids.to(self.device)
        divisor = total_weight(blocks.valid, settings.weights.decay)
        bounds = [part * settings.batch_size // settings.accumulate for part in range(settings.accumulate + 1)]
        found: list[Losses] = []
        for rows in map(slice, bounds[:-1], bounds[1:]):
            states = block_states(
                self.target, self.network, token_ids[rows], blocks.part(rows=rows), autocast=self.autocast
            )
            found.append(backpropagate(states, weights=settings.weights, divisor=divisor))
        return sum(found[1:], found[0])

    def _batch(self, step: int) -> Text:
        per_epoch = len(self.text.lengths) // self.settings.batch_size
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(self.text.lengths), generator=self._generator("order", epoch))
        start = place * self.settings.batch_size
        rows: list[int] = order[start : start + self.settings.batch_size].tolist()
        return self.text.select(rows)

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.settings.seed} {purpose} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _identity(self) -> dict[str, str]:
        """What a run is, part by part."""
        text = {name: getattr(self.text, name) for name in ("token_ids", "lengths", "prompt_lengths")}
        network = [type(self.network).__name__, self.network.config]
        return {
            "settings": repr(self.settings),
            "arithmetic": f"{self.target.model.dtype}, autocast {self.autocast}",
            "text": digest_of(text),
            "target": model_digest(self.target.model),
            "network": repr(network),
        }


def compile_layers(network: DrafterNetwork, *, backend: str | Callable[..., Any]) -> None:
    """Compile the layers of a drafter in place; its parameters keep their names, and lengths may change from batch to batch."""
    kind = GatedMLP if isinstance(network, Eagle3Network) else BlockLayer
    for module in network.modules():
        if isinstance(module, kind):
            module.compile(backend=backend, dynamic=True)
