"""Rounding of a real model, measured: bfloat16 against itself in other correct forms, and against float32."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.measurements.ledger import Entry
from verify.greedy.noise import measure_noise_floor
from verify.models.compat import forward_logits

FIXTURE_TARGET = Path(__file__).parents[2] / "fixtures" / "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Differences in log-probability of one model, in nats: the floor as the suite measures it, and the cast itself."""

    floor: float
    against_float32: float
    standard_deviation: float
    num_positions: int


def load(dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The fixture target in a dtype."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(FIXTURE_TARGET, dtype=dtype, local_files_only=True)
    torch.nn.Module.to(model, device)
    model.eval()
    return model


@torch.no_grad()
def measure_rounding(*, device: torch.device, seed: int, num_texts: int = 4, length: int = 48) -> Rounding:
    """Sample texts from the float32 model, then compare the log-probabilities of all their rows."""
    torch.manual_seed(seed)
    exact, rough = load(torch.float32, device), load(torch.bfloat16, device)
    texts = [_sampled(exact, length) for _ in range(num_texts)]
    floor = measure_noise_floor(rough, texts).max_logprob_difference
    changes = []
    for text in texts:
        token_ids = torch.tensor([text], device=device)
        laws = [forward_logits(model, token_ids)[0].double().log_softmax(-1) for model in (exact, rough)]  # [T, V]
        changes.append((laws[0] - laws[1]).flatten())
    change = torch.cat(changes)
    return Rounding(
        floor=floor,
        against_float32=float(change.abs().max()),
        standard_deviation=float(change.std()),
        num_positions=num_texts * length,
    )


def as_entry(rounding: Rounding) -> Entry:
    """For a JSON file."""
    return asdict(rounding)


def _sampled(model: PreTrainedModel, length: int) -> list[int]:
    text = [int(torch.randint(model.config.vocab_size, ()))]
    while len(text) < length:
        logits = forward_logits(model, torch.tensor([text], device=model.device))[0, -1]
        text.append(int(torch.multinomial(logits.float().softmax(-1), 1)))
    return text
