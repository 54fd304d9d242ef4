"""The adapter that hands this decoder to a conformance suite; structural typing, no import of the suite."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from dspark.block_verification import verify_jointly
from dspark.checkpoints import CONFIG
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.factory import Kind, load_drafter, random_drafter
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.request import DecodingRequest, Generation
from dspark.sample_matching import verify_by_matching
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.round_profile import RoundProfile
from dspark.scheduler.skipping import SkippingScheduler
from dspark.scheduler.threshold import StaticThreshold
from dspark.serving import Engine, Limits
from dspark.tree.decoder import TreeDecoder
from dspark.tree.drafter import ModelTreeDrafter, Siblings
from dspark.tree.topology import Topology

CLAIMED = (
    "greedy",
    "sampled",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "forbidden_tokens",
    "allowed_tokens",
    "grammar",
    "min_new_tokens",
    "stop_tokens",
    "batch",
    "mixed_sampling",
    "seeds",
    "seeds_per_request",
    "zero_draft_tokens",
    "roles",
    "record",
    "streaming",
    "recurrent_targets",
)
CLAIMED_WITH_A_DRAFT_MODEL = ("draft_model", "draft_vocab_mismatch", "standard_acceptance")
# A forward with n tokens costs 1 + n / 8 of one without drafts: about what a small batch costs on a GPU; on tiny models it makes
# schedules of every length.
PROFILE = SpeedProfile(token_counts=(1, 64), steps_per_second=(8 / 9, 8 / 72))
# The same verification; drafting costs about half of a plain round, so whether it pays hangs on the confidences.
ROUNDS = RoundProfile(
    row_counts=(1, 3),
    draft_counts=(0, 1, 7),
    plain_seconds=(9 / 8, 11 / 8),
    drafted_seconds=((13 / 8, 14 / 8, 20 / 8), (14 / 8, 17 / 8, 35 / 8)),
)
MEASURED_PROFILE = "speed-profile.json"
# Two or three texts of the suite's batches fit, until they grow.
SMALL = Limits(max_rows=3, max_tokens=24, max_prefixes=4)


class Models(Protocol):
    """What the adapter reads of the suite's pair."""

    @property
    def target(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def draft(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102


class Decoding(Protocol):
    """What a decoder of this package does."""

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]: ...  # noqa: D102
    def stream(self, request: DecodingRequest) -> Iterator[list[int]]: ...  # noqa: D102


class ConformingDecoder:
    """A decoder of this package with its claims."""

    def __init__(self, models: Models, decoder: Decoding, claims: Sequence[str]) -> None:
        self.decoder = decoder
        self.capabilities: Mapping[str, Any] = {
            **dict.fromkeys(claims, True),
            "logprobs": "processed",
            "arithmetic": "float64" if models.dtype == torch.float64 else "float32",
        }

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]:
        """Answer the requests as one batch."""
        return self.decoder.generate(requests)

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output round by round."""
        return self.decoder.stream(request)


def make_decoder(models: Models) -> ConformingDecoder:
    """The classic two-model decoder with sampled drafts."""
    decoder = SpeculativeDecoder(models.target, ModelDrafter(models.draft))
    return ConformingDecoder(models, decoder, CLAIMED + CLAIMED_WITH_A_DRAFT_MODEL)


def make_block_decoder(models: Models) -> ConformingDecoder:
    """The two-model scheme with block verification, which accepts more than the standard rule."""
    decoder = SpeculativeDecoder(models.target, ModelDrafter(models.draft), verify=verify_jointly)
    return ConformingDecoder(models, decoder, (*CLAIMED, "draft_model", "draft_vocab_mismatch"))


def make_matching_decoder(models: Models) -> ConformingDecoder:
    """The two-model scheme with sample matching, which accepts less."""
    decoder = SpeculativeDecoder(models.target, ModelDrafter(models.draft), verify=verify_by_matching)
    return ConformingDecoder(models, decoder, (*CLAIMED, "draft_model", "draft_vocab_mismatch"))


def make_ngram_decoder(models: Models) -> ConformingDecoder:
    """Prompt lookup; the draft model is not used."""
    return ConformingDecoder(models, SpeculativeDecoder(models.target, NgramDrafter()), CLAIMED)


def make_dspark_decoder(models: Models) -> ConformingDecoder:
    """The DSpark method: its drafter, scheduled by Algorithm 1."""
    return _scheduled(models, PrefixScheduler(profile_for(models)))


def make_lagged_decoder(models: Models) -> ConformingDecoder:
    """The DSpark drafter under the asynchronous scheduler."""
    return _scheduled(models, LaggedScheduler(profile_for(models)))


def make_threshold_decoder(models: Models) -> ConformingDecoder:
    """The DSpark drafter with a static threshold on its confidence."""
    return _scheduled(models, StaticThreshold(0.5), by_load=False)


def make_dflash_decoder(models: Models) -> ConformingDecoder:
    """The parallel backbone without heads."""
    return ConformingDecoder(models, SpeculativeDecoder(models.target, drafter_for(models, "dflash")), CLAIMED)


def make_eagle3_decoder(models: Models) -> ConformingDecoder:
    """The autoregressive feature drafter."""
    return ConformingDecoder(models, SpeculativeDecoder(models.target, drafter_for(models, "eagle3")), CLAIMED)


def make_serving_decoder(models: Models) -> ConformingDecoder:
    """The two-model scheme in the serving engine, with a budget so small that batches of the suite preempt."""
    engine = Engine(models.target, ModelDrafter(models.draft), limits=SMALL)
    return ConformingDecoder(models, engine, CLAIMED + CLAIMED_WITH_A_DRAFT_MODEL)


def make_scheduled_serving_decoder(models: Models) -> ConformingDecoder:
    """The DSpark method as it is meant to be served: Algorithm 1 over the requests that run, and rounds without drafts."""
    scheduler = SkippingScheduler(PrefixScheduler(ROUNDS), ROUNDS)
    engine = Engine(models.target, drafter_for(models, "dspark"), limits=SMALL, scheduler=scheduler)
    return ConformingDecoder(
        models, engine, [*(claim for claim in CLAIMED if claim != "seeds_per_request"), "scheduled"]
    )


def make_tree_decoder(models: Models) -> ConformingDecoder:
    """A tree whose siblings are independent draws."""
    return _with_a_tree(models, "independent")


def make_distinct_tree_decoder(models: Models) -> ConformingDecoder:
    """A tree whose siblings are drawn without replacement."""
    return _with_a_tree(models, "distinct")


def _with_a_tree(models: Models, siblings: Siblings) -> ConformingDecoder:
    """Two candidates for every place but the first, of which one goes on: small enough for the exact law."""
    drafter = ModelTreeDrafter(models.draft, siblings=siblings)
    decoder = TreeDecoder(models.target, drafter, Topology.spine((1, *[2] * 7)))
    claims = [claim for claim in CLAIMED if claim != "recurrent_targets"]
    return ConformingDecoder(models, decoder, [*claims, "draft_model", "draft_vocab_mismatch"])


def drafter_for(models: Models, kind: Kind) -> Drafter:
    """The drafter that lies beside the target's checkpoint; else one of random weights, which the law must not show."""
    target = models.target
    folder = _beside(target, kind)
    if folder and (folder / CONFIG).is_file():
        return load_drafter(folder, target=target, device=target.device, dtype=models.dtype)
    return random_drafter(target, kind=kind, dtype=models.dtype)


def profile_for(models: Models) -> SpeedProfile:
    """The speed profile that lies beside the target's checkpoint; else one that is not measured, the same everywhere."""
    file = _beside(models.target, MEASURED_PROFILE)
    return SpeedProfile.load(file) if file and file.is_file() else PROFILE


def _beside(target: PreTrainedModel, name: str) -> Path | None:
    return Path(target.name_or_path).parent / name if target.name_or_path else None


def _scheduled(models: Models, scheduler: Scheduler, *, by_load: bool = True) -> ConformingDecoder:
    """With `by_load` the lengths of a row depend on its batch mates, and with them the tokens that its seed gives."""
    decoder = SpeculativeDecoder(models.target, drafter_for(models, "dspark"), scheduler=scheduler)
    claims = [claim for claim in CLAIMED if not (by_load and claim == "seeds_per_request")]
    return ConformingDecoder(models, decoder, [*claims, "scheduled"])
