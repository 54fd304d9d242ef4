"""The library of bug hypotheses: it is the power of the betting test, and the vocabulary of its diagnosis."""

from functools import cache

from verify.betting import laws
from verify.betting.hypotheses import SHARES, Hypothesis
from verify.betting.laws import Law

# Every law here is known before the token at its position. The row one position later is not, because it depends on that
# token: a bet on it pays sum_x target(x) row_x(x)/target(x), up to V, and is no martingale.
ALTERNATIVES = {
    "unprocessed": "softmax of the model's logits at temperature 1, no processor",
    "no_temperature": "every processor but the temperature",
    "no_truncation": "every processor but top-k, top-p and min-p",
    "no_history": "processors that look at the history saw none",
    "stale_history": "processors saw the history as of the start of the block",
    "previous_row": "the target row one position earlier",
    "other_request": "the row of another request of the batch",
    "draft_unprocessed": "the draft model's softmax at temperature 1, no processor",
    "draft_previous_row": "the draft model's row one position earlier",
}
LEAK_SHARES = (0.002, 0.005, 0.0125, 0.03, 0.08)
# A law that may act at every position or at the bonus only is told apart, without offsets, by how often it acts.
BONUS_SHARES = (0.02, 0.1, 0.3)
EVERYWHERE_SHARES = (0.6, 0.98)
# Laws that depend on a strength of their own need few shares.
STRENGTH_SHARES = (0.1, 0.98)


def _at_drafts(
    family: str, name: str, explanation: str, formula: Law, *needs: str, shares: tuple[float, ...] = SHARES
) -> Hypothesis:
    """A mistake of the round: it acts at positions with a draft."""
    return Hypothesis(
        name=name, family=family, explanation=explanation, formula=formula, needs=("draft", *needs), shares=shares
    )


def _with_strength(
    family: str, name: str, explanation: str, variants: dict[str, Law], *, everywhere: bool = False, draft: bool = True
) -> list[Hypothesis]:
    """One mistake in several strengths, which the diagnosis adds up."""
    return [
        Hypothesis(
            name=name,
            family=family,
            explanation=explanation,
            variant=variant,
            formula=formula,
            place="any" if everywhere else "draft",
            needs=("draft",) if draft else (),
            shares=STRENGTH_SHARES,
        )
        for variant, formula in variants.items()
    ]


def _acceptance() -> list[Hypothesis]:
    return [
        _at_drafts(
            "ACC",
            "everything_accepted",
            "The output follows the draft: every draft is accepted (coin fixed at 0, NaN in the ratio), or the "
            "residual is max(draft - target, 0); look at the acceptance test and at the sign of the residual.",
            laws.draft,
            shares=(0.8, 0.98),
        ),
        _at_drafts(
            "ACC",
            "accept_without_coin",
            "A draft is accepted exactly when target >= draft; the acceptance test lacks its uniform coin.",
            laws.accept_without_coin,
        ),
        *_with_strength(
            "ACC",
            "acceptance_too_generous",
            "Drafts are accepted too often; look for lenience, a threshold factor, or a coin that is not uniform.",
            {f"ratio times {factor:g}": laws.accept_scaled(factor) for factor in (1.1, 1.5, 3.0)}
            | {f"ratio plus {shift:g}": laws.accept_shifted(shift) for shift in (0.02, 0.1)},
        ),
        *_with_strength(
            "ACC",
            "acceptance_too_strict",
            "Drafts are rejected too often for the residual that follows; look for a second coin or a threshold.",
            {f"ratio times {factor:g}": laws.accept_scaled(factor) for factor in (0.9, 0.5)},
        ),
        Hypothesis(
            name="probabilities_as_logits",
            family="ACC",
            explanation="Target probabilities go through a second softmax; look at what the rejection step expects to be given.",
            formula=laws.probabilities_as_logits,
            place="any",
            needs=(),
        ),
        _at_drafts(
            "RNG",
            "coin_of_the_draft",
            "A draft is accepted by the number that drew it; the two streams start from one seed or share their counter.",
            laws.coin_of_the_draft,
        ),
        _at_drafts(
            "RNG",
            "coin_reused_for_recovery",
            "The coin that rejected a draft also draws the recovered token; draw a fresh number.",
            laws.coin_reused_for_recovery,
        ),
        _at_drafts(
            "VOCAB",
            "draft_from_one_shard",
            "Drafts come from the first half of the vocabulary but are verified with the whole law; gather the shards first.",
            laws.draft_from_one_shard,
        ),
        _at_drafts(
            "VOCAB",
            "draft_token_0_lost",
            "A drafted token 0 is always rejected; look for a test of the id's truth value and for padding with 0.",
            laws.token_never_accepted(0),
        ),
    ]


def _residual() -> list[Hypothesis]:
    return [
        _at_drafts(
            "RES",
            "residual_not_subtracted",
            "The recovered token is drawn from the target; subtract the draft law and renormalise.",
            laws.recover_from_target,
        ),
        _at_drafts(
            "RES",
            "recovered_from_draft",
            "The recovered token is drawn from the draft law; look at which row the rejection branch samples.",
            laws.recover_from_draft,
        ),
        _at_drafts(
            "RES",
            "residual_absolute",
            "The residual is |target - draft|; clamp the difference at 0 instead.",
            laws.recover_from_absolute,
        ),
        _at_drafts(
            "RES",
            "residual_softmax",
            "The clamped residual goes through a softmax, which makes it nearly uniform; divide by its sum instead.",
            laws.recover_from_softmax,
        ),
        _at_drafts(
            "RES",
            "residual_argmax",
            "The recovered token is the arg max of the residual; it must be drawn at random.",
            laws.recover_argmax,
        ),
        _at_drafts(
            "RES",
            "residual_previous_row",
            "The residual uses the target row of the previous position; look at the index of the rejected row.",
            laws.recover_by("previous_row"),
            "previous_row",
        ),
        _at_drafts(
            "LOGP",
            "residual_unprocessed",
            "The residual uses the target before processors; look at what the rejection branch reads.",
            laws.recover_by("unprocessed"),
            "unprocessed",
        ),
        _at_drafts(
            "LOGP",
            "acceptance_unprocessed",
            "The acceptance test uses the target before processors, the residual after them.",
            laws.accept_by("unprocessed"),
            "unprocessed",
        ),
    ]


def _draft_mismatch() -> list[Hypothesis]:
    return [
        _at_drafts(
            "QMIS",
            "greedy_draft_as_soft",
            "The draft is its arg max but is verified as if sampled from its soft law; sample it, or call it one-hot.",
            laws.greedy_draft_as_soft,
        ),
        _at_drafts(
            "QMIS",
            "draft_drawn_unprocessed",
            "Drafts are drawn before processors (temperature, top-k, top-p) but verified with the processed law.",
            laws.drawn_from("draft_unprocessed"),
            "draft_unprocessed",
        ),
        _at_drafts(
            "QMIS",
            "draft_drawn_rounded",
            "Drafts are drawn from a law rounded to bfloat16 but verified with all digits; draw and verify with the same tensor.",
            laws.draft_drawn_rounded,
            shares=(0.98,),
        ),
        _at_drafts(
            "QMIS",
            "draft_verified_unprocessed",
            "Drafts are drawn after processors but verified with the draft law before them.",
            laws.verified_with("draft_unprocessed"),
            "draft_unprocessed",
        ),
        _at_drafts(
            "QMIS",
            "draft_verified_with_previous_row",
            "Drafts are verified with the draft law of the position before; look at the offset of draft_probs.",
            laws.verified_with("draft_previous_row"),
            "draft_previous_row",
        ),
    ]


def _bonus() -> list[Hypothesis]:
    def bonus(name: str, explanation: str, formula: Law, *needs: str) -> Hypothesis:
        return Hypothesis(
            name=name,
            family="BON",
            explanation=explanation,
            formula=formula,
            needs=needs,
            place="bonus",
            shares=BONUS_SHARES,
        )

    return [
        bonus(
            "bonus_from_draft",
            "The bonus token is drawn from the draft law; it must come from the target row after the last draft.",
            laws.draft,
            "draft",
        ),
        bonus(
            "bonus_unprocessed",
            "The bonus token is drawn from the raw softmax; apply temperature, top-k and top-p to the last row too.",
            laws.alternative("unprocessed"),
            "unprocessed",
        ),
        bonus(
            "bonus_previous_row",
            "The bonus token is drawn from the row of the last draft; it must come from the row after it.",
            laws.alternative("previous_row"),
            "previous_row",
        ),
        bonus("bonus_argmax", "The bonus token is the target's arg max; it must be drawn.", laws.target_argmax),
    ]


def _everywhere() -> list[Hypothesis]:
    explanations = {
        "unprocessed": ("LOGP", "Tokens follow the raw softmax at temperature 1: no processor is applied."),
        "no_temperature": ("LOGP", "The temperature is ignored; the other processors are applied."),
        "no_truncation": ("LOGP", "Top-k, top-p or min-p is ignored; the other processors are applied."),
        "no_history": ("LOGP", "Penalties see no history; look at what the verification hands to the processors."),
        "stale_history": (
            "LOGP",
            "Penalties see the history at the start of the block; each row has its own prefix.",
        ),
        "previous_row": (
            "POS",
            "Tokens follow the target row one position too early; look at the offset of the logits.",
        ),
        "other_request": ("BATCH", "Tokens follow the row of another request of the batch; look at the row index."),
    }
    return [
        Hypothesis(
            name=name,
            family=family,
            explanation=explanation,
            formula=laws.alternative(name),
            place="any",
            needs=(name,),
            shares=EVERYWHERE_SHARES if name in ("unprocessed", "previous_row") else SHARES,
        )
        for name, (family, explanation) in explanations.items()
    ]


def _numerics() -> list[Hypothesis]:
    return [
        Hypothesis(
            name="target_rounded",
            family="NUM",
            explanation="The target's law is rounded to bfloat16; keep probabilities in float32 or more.",
            formula=laws.target_rounded,
            place="any",
            needs=(),
            shares=(0.98,),
        )
    ]


def _lossy() -> list[Hypothesis]:
    typical = {
        f"{kind} draft": laws.typical_acceptance(threshold=0.09, scale=0.3, greedy_draft=kind == "greedy")
        for kind in ("sampled", "greedy")
    }
    return [
        *_with_strength(
            "LOSSY",
            "typical_acceptance",
            "Typical acceptance (entropy threshold, arg max after a rejection): lossy by design.",
            typical,
        ),
        Hypothesis(
            name="greedy_instead_of_sampled",
            family="LOSSY",
            explanation="Tokens are the target's arg max where they should be drawn at random.",
            formula=laws.target_argmax,
            place="any",
            needs=(),
        ),
    ]


def _generic() -> list[Hypothesis]:
    def powers(name: str, explanation: str, exponents: tuple[float, ...]) -> list[Hypothesis]:
        variants = {f"target^{exponent:g}": laws.power(target=exponent) for exponent in exponents}
        return _with_strength("GENERIC", name, explanation, variants, everywhere=True, draft=False)

    def pulls(name: str, explanation: str, exponents: tuple[float, ...]) -> list[Hypothesis]:
        variants = {f"draft^{exponent:g}": laws.power(target=1, draft=exponent) for exponent in exponents}
        return _with_strength("GENERIC", name, explanation, variants, everywhere=True)

    return [
        Hypothesis(
            name="draft_leak",
            family="GENERIC",
            explanation="A share of the tokens comes from the draft unverified; look at block ends, retries, races.",
            formula=laws.draft,
            place="any",
            shares=LEAK_SHARES,
        ),
        Hypothesis(
            name="uniform_leak",
            family="GENERIC",
            explanation="Some tokens are close to random ones; look for uninitialised rows and a uniform fallback.",
            formula=laws.uniform,
            place="any",
            needs=(),
            shares=(*LEAK_SHARES, 0.5),
        ),
        *powers("sharpened", "Tokens are too certain; look at the temperature and for a greedy path.", (1.1, 2.0)),
        *powers("flattened", "Tokens are too random; look at the temperature and the truncation.", (0.5, 0.9)),
        *pulls("pulled_to_draft", "Tokens lean towards the draft; look at acceptance and residual.", (0.1, 0.3)),
        *pulls("pushed_from_draft", "Tokens lean away from the draft; look for drafts that are lost.", (-0.1, -0.3)),
    ]


@cache
def library() -> tuple[Hypothesis, ...]:
    """Every hypothesis of the suite, in a fixed order."""
    parts = (_acceptance, _residual, _draft_mismatch, _bonus, _everywhere, _numerics, _lossy, _generic)
    return tuple(hypothesis for part in parts for hypothesis in part())
