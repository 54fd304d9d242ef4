"""Correct but unusual decoders: the suite must pass every one of them, whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dspark.block_verification import verify_jointly
from dspark.conformance import (
    CLAIMED,
    PROFILE,
    ConformingDecoder,
    make_decoder,
    make_distinct_tree_decoder,
    make_ngram_decoder,
    make_tree_decoder,
)
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.drafters.protocol import Drafter
from dspark.sample_matching import verify_by_matching
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.threshold import StaticThreshold
from dspark.verification import VerificationRule
from tests.mutants import control_parts as parts
from tests.mutants.mutant import PatchedDecoder
from verify.adapters.transformers import AssistedGeneration, make_heuristic_decoder
from verify.instrument import CORRECT, maker

Make = Callable[[Any], Any]
STANDARD = ("draft_model", "standard_acceptance", "draft_vocab_mismatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A correct decoder and what is unusual about it; `options` are given to the run that judges it."""

    id: str
    about: str
    make: Make
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The reference decoder from other parts, as an adapter factory; it claims `claims` and what it always does but `without`."""

    drafter: Callable[[Any], Drafter] = lambda models: ModelDrafter(models.draft)
    claims: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    scheduler: Callable[[], Scheduler | None] = lambda: None
    verify: VerificationRule | None = None
    patches: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, models: Any) -> Any:
        """Build it for a pair."""
        return PatchedDecoder(self._make, self.patches, models)

    def _make(self, models: Any) -> ConformingDecoder:
        decoder = SpeculativeDecoder(
            models.target, self.drafter(models), scheduler=self.scheduler(), verify=self.verify
        )
        kept: Sequence[str] = [claim for claim in CLAIMED if claim not in self.without]
        return ConformingDecoder(models, decoder, (*kept, *self.claims))


def adaptive_transformers(models: Any) -> AssistedGeneration:
    """Assisted generation whose draft lengths follow the acceptance of earlier rounds.

    It claims nothing about acceptance: transformers applies the temperature to its drafts twice, which costs speed alone.
    """
    decoder = make_heuristic_decoder(models)
    decoder.capabilities = replace(decoder.capabilities, draft_model=False, standard_acceptance=False)
    return decoder


CONTROLS: dict[str, Control] = {
    control.id: control
    for control in (
        Control(
            id="sample-match",
            about="accepts a draft iff the target drew the same token: its acceptance is not 1 - TV (CTRL-1)",
            make=Parts(verify=verify_by_matching, claims=("draft_vocab_mismatch",)),
        ),
        Control(
            id="block-verification",
            about="judges the block as a whole and accepts more than token by token (Sun et al. 2024)",
            make=Parts(verify=verify_jointly, claims=("draft_vocab_mismatch",)),
        ),
        Control(
            id="one-hot-drafts",
            about="drafts the arg max and declares it certain, so acceptance is the target's own probability (CTRL-3)",
            make=Parts(drafter=lambda models: ModelDrafter(models.draft, greedy=True)),
        ),
        Control(
            id="tree",
            about="drafts a tree whose siblings are independent draws, and tries them one after the other",
            make=make_tree_decoder,
        ),
        Control(
            id="tree-without-replacement",
            about="drafts a tree whose siblings are drawn without replacement, each declared with the law that was left",
            make=make_distinct_tree_decoder,
        ),
        Control(
            id="prompt-lookup",
            about="drafts from the text itself; where nothing matches a round has no draft",
            make=make_ngram_decoder,
        ),
        Control(
            id="lazy-residual",
            about="computes the residual of rejected rows only, and falls back on the target below a mass of 1e-8 (CTRL-5)",
            make=Parts(patches={"dspark.verification.residual": parts.lazy_residual}, claims=STANDARD),
        ),
        Control(
            id="half-hearted",
            about="accepts half of what it could and recovers from target - min(target, draft) / 2: looks too strict",
            make=Parts(verify=parts.half_hearted, claims=("draft_vocab_mismatch",)),
        ),
        Control(
            id="causal-threshold",
            about="ends a block where the draft is unsure of the token that it has yet to draw (CTRL-4)",
            make=Parts(scheduler=lambda: StaticThreshold(0.5), claims=("scheduled",)),
        ),
        Control(
            id="lagged-capacity",
            about="searches its capacity over the whole block, with confidences two rounds old (SCHED-6)",
            make=Parts(
                scheduler=lambda: LaggedScheduler(PROFILE),
                claims=("scheduled",),
                without=("seeds_per_request",),
            ),
        ),
        Control(
            id="alternating-lengths",
            about="verifies 1, 2, 3, 0, 1, ... drafts, by the number of the round",
            make=Parts(scheduler=parts.Alternating, claims=("scheduled",)),
        ),
        Control(
            id="sometimes-silent",
            about="its drafter proposes nothing after every third token",
            make=Parts(drafter=parts.SometimesSilent, claims=("draft_model",)),
        ),
        Control(
            id="narrow-drafter",
            about="drafts from a vocabulary of the even token ids, mapped into the target's",
            make=Parts(drafter=parts.NarrowDrafter),
        ),
        Control(
            id="other-order",
            about="draws its random numbers in another order: drafts last, the final token's first",
            make=Parts(patches={"dspark.batch.round_uniforms": parts.drafts_last}, claims=STANDARD),
        ),
        Control(
            id="multinomial",
            about="draws with torch.multinomial from the global generator and claims no seeds",
            make=Parts(
                patches={
                    "dspark.drafters.model.draw": parts.multinomial,
                    "dspark.verification.draw": parts.multinomial,
                },
                claims=STANDARD,
                without=("seeds", "seeds_per_request"),
            ),
        ),
        Control(
            id="exponential-race",
            about="draws by a race of exponential variables, as CUDA samplers do, and claims no seeds",
            make=Parts(
                patches={"dspark.drafters.model.draw": parts.race, "dspark.verification.draw": parts.race},
                claims=STANDARD,
                without=("seeds", "seeds_per_request"),
            ),
        ),
        Control(
            id="last-of-ties",
            about="greedy decoding takes the last of several equal logits (NUM-12)",
            make=Parts(patches={"dspark.sampling.one_hot_of_best": parts.last_of_ties}, claims=STANDARD),
        ),
        Control(
            id="row-by-row",
            about="a batch whose rows have caches of their own and are read one after the other",
            make=Parts(
                patches={
                    "dspark.prefixes.open_context": parts.RowwiseContext,
                    "dspark.drafters.model.open_context": parts.RowwiseContext,
                },
                claims=STANDARD,
            ),
        ),
        Control(
            id="no-cache",
            about="no cache and no batch: the whole text is read at every step",
            make=maker(CORRECT["coins first"]),
        ),
        Control(
            id="adaptive-transformers",
            about="transformers' assisted generation with draft lengths that follow the acceptance of earlier rounds",
            make=adaptive_transformers,
        ),
        Control(
            id="bfloat16",
            about="the reference decoder on the trained pair in bfloat16: near ties and honest noise (CTRL-8)",
            make=make_decoder,
            options=("--dtype", "bfloat16"),
        ),
    )
}
