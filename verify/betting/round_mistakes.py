"""Mistakes of a round: the acceptance test, the residual, the law of the drafts, and the bonus."""

from verify.betting import laws
from verify.betting.hypotheses import SHARES, Hypothesis
from verify.betting.laws import Law

# A law that may act at every position or at the bonus only is told apart, without offsets, by how often it acts.
BONUS_SHARES = (0.02, 0.1, 0.3)
# Laws that depend on a strength of their own need few shares.
STRENGTH_SHARES = (0.1, 0.98)


def at_drafts(
    family: str,
    name: str,
    explanation: str,
    formula: Law,
    *needs: str,
    shares: tuple[float, ...] = SHARES,
    keeps_acceptance: bool = False,
) -> Hypothesis:
    """A mistake of the round: it acts at positions with a draft."""
    return Hypothesis(
        name=name,
        family=family,
        explanation=explanation,
        formula=formula,
        needs=("draft", *needs),
        shares=shares,
        keeps_acceptance=keeps_acceptance,
    )


def _recovery(
    name: str,
    explanation: str,
    formula: Law,
    *needs: str,
    family: str = "RES",
    shares: tuple[float, ...] = SHARES,
) -> Hypothesis:
    """A mistake behind a rejection: drafts are accepted as they should be."""
    return at_drafts(family, name, explanation, formula, *needs, shares=shares, keeps_acceptance=True)


def with_strength(
    family: str,
    name: str,
    explanation: str,
    variants: dict[str, Law],
    *,
    everywhere: bool = False,
    draft: bool = True,
    shares: tuple[float, ...] = STRENGTH_SHARES,
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
            shares=shares,
        )
        for variant, formula in variants.items()
    ]


def acceptance() -> list[Hypothesis]:
    """Drafts are accepted, drawn or matched with coins in a wrong way."""
    return [
        at_drafts(
            "ACC",
            "everything_accepted",
            "The output follows the draft: every draft is accepted (coin fixed at 0, NaN in the ratio); look at the "
            "acceptance test.",
            laws.draft,
            shares=(0.8, 0.98),
        ),
        at_drafts(
            "ACC",
            "accept_without_coin",
            "A draft is accepted exactly when target >= draft; the acceptance test lacks its uniform coin.",
            laws.accept_without_coin,
        ),
        *with_strength(
            "ACC",
            "acceptance_too_generous",
            "Drafts are accepted too often; look for lenience, a threshold factor, or a coin that is not uniform.",
            {f"ratio times {factor:g}": laws.accept_scaled(factor) for factor in (1.1, 1.5, 3.0)}
            | {f"ratio plus {shift:g}": laws.accept_shifted(shift) for shift in (0.02, 0.1)},
        ),
        *with_strength(
            "ACC",
            "acceptance_too_strict",
            "Drafts are rejected too often for the residual that follows; look for a second coin or a threshold.",
            {f"ratio times {factor:g}": laws.accept_scaled(factor) for factor in (0.9, 0.5)},
        ),
        *with_strength(
            "ACC",
            "ratio_of_another_token",
            "Whether a draft is accepted does not depend on its token; look at the token and the row that the ratio is read at.",
            {"target's arg max": laws.accept_by_the_best}
            | {f"accepts {share:g}": laws.accept_blindly(share) for share in (0.5, 0.8)},
        ),
        Hypothesis(
            name="probabilities_as_logits",
            family="ACC",
            explanation="Target probabilities go through a second softmax; look at what the rejection step expects to be given.",
            formula=laws.probabilities_as_logits,
            place="any",
            needs=(),
        ),
        at_drafts(
            "RNG",
            "coin_of_the_draft",
            "A draft is accepted by the number that drew it; the two streams start from one seed or share their counter.",
            laws.coin_of_the_draft,
        ),
        at_drafts(
            "RNG",
            "coin_reused_for_recovery",
            "The coin that rejected a draft also draws the recovered token; draw a fresh number.",
            laws.coin_reused_for_recovery,
            keeps_acceptance=True,
        ),
        at_drafts(
            "VOCAB",
            "draft_from_one_shard",
            "Drafts come from the first half of the vocabulary but are verified with the whole law; gather the shards first.",
            laws.draft_from_one_shard,
        ),
        at_drafts(
            "VOCAB",
            "draft_token_0_lost",
            "A drafted token 0 is always rejected; look for a test of the id's truth value and for padding with 0.",
            laws.token_never_accepted(0),
        ),
    ]


def residual() -> list[Hypothesis]:
    """The token behind a rejection is wrong."""
    return [
        _recovery(
            "residual_not_subtracted",
            "The recovered token is drawn from the target; subtract the draft law and renormalise.",
            laws.recover_from_target,
        ),
        _recovery(
            "recovered_from_draft",
            "The recovered token is drawn from the draft law; look at which row the rejection branch samples.",
            laws.recover_from_draft,
        ),
        _recovery(
            "residual_reversed",
            "The residual is max(draft - target, 0): its sign is wrong, and the output follows the draft.",
            laws.draft,
            shares=(0.8, 0.98),
        ),
        _recovery(
            "residual_absolute",
            "The residual is |target - draft|; clamp the difference at 0 instead.",
            laws.recover_from_absolute,
        ),
        _recovery(
            "residual_softmax",
            "The clamped residual goes through a softmax, which makes it nearly uniform; divide by its sum instead.",
            laws.recover_from_softmax,
        ),
        _recovery(
            "residual_argmax",
            "The recovered token is the arg max of the residual; it must be drawn at random.",
            laws.recover_argmax,
        ),
        _recovery(
            "residual_previous_row",
            "The residual uses the target row of the previous position; look at the index of the rejected row.",
            laws.recover_by("previous_row"),
            "previous_row",
        ),
        _recovery(
            "residual_unprocessed",
            "The residual uses the target before processors; look at what the rejection branch reads.",
            laws.recover_by("unprocessed"),
            "unprocessed",
            family="LOGP",
        ),
        at_drafts(
            "LOGP",
            "acceptance_unprocessed",
            "The acceptance test uses the target before processors, the residual after them.",
            laws.accept_by("unprocessed"),
            "unprocessed",
        ),
    ]


def draft_mismatch() -> list[Hypothesis]:
    """Drafts do not follow the law that they are verified with."""
    return [
        at_drafts(
            "QMIS",
            "greedy_draft_as_soft",
            "The draft is its arg max but is verified as if sampled from its soft law; sample it, or call it one-hot.",
            laws.greedy_draft_as_soft,
        ),
        at_drafts(
            "QMIS",
            "draft_drawn_unprocessed",
            "Drafts are drawn before processors (temperature, top-k, top-p) but verified with the processed law.",
            laws.drawn_from("draft_unprocessed"),
            "draft_unprocessed",
        ),
        at_drafts(
            "QMIS",
            "draft_drawn_rounded",
            "Drafts are drawn from a law rounded to bfloat16 but verified with all digits; draw and verify with the same tensor.",
            laws.draft_drawn_rounded,
            shares=(0.98,),
        ),
        *with_strength(
            "QMIS",
            "draft_drawn_sharper",
            "Drafts are drawn from a more certain law than the one they are verified with (a lower temperature, a truncation, a "
            "second draw of unlikely ones); declare the law that they are drawn from.",
            {f"draft^{exponent:g}": laws.drawn_from_power(exponent) for exponent in (1.2, 1.5, 3.0)}
            | {f"min_p {floor:g}": laws.drawn_from_likely(floor) for floor in (0.2, 0.5)}
            | {f"best below {floor:g}": laws.drawn_from_likely(floor, best_instead=True) for floor in (0.2, 0.5)},
        ),
        *with_strength(
            "QMIS",
            "draft_drawn_flatter",
            "Drafts are drawn from a less certain law than the one they are verified with; declare the former.",
            {f"draft^{exponent:g}": laws.drawn_from_power(exponent) for exponent in (0.4, 0.8)},
        ),
        at_drafts(
            "QMIS",
            "draft_verified_unprocessed",
            "Drafts are drawn after processors but verified with the draft law before them.",
            laws.verified_with("draft_unprocessed"),
            "draft_unprocessed",
        ),
        at_drafts(
            "QMIS",
            "draft_verified_with_previous_row",
            "Drafts are verified with the draft law of the position before; look at the offset of draft_probs.",
            laws.verified_with("draft_previous_row"),
            "draft_previous_row",
        ),
    ]


def bonus() -> list[Hypothesis]:
    """The token behind full acceptance is wrong."""

    def hypothesis(name: str, explanation: str, formula: Law, *needs: str) -> Hypothesis:
        return Hypothesis(
            name=name,
            family="BON",
            explanation=explanation,
            formula=formula,
            needs=needs,
            place="bonus",
            shares=BONUS_SHARES,
            keeps_acceptance=True,
        )

    return [
        hypothesis(
            "bonus_from_draft",
            "The bonus token is drawn from the draft law; it must come from the target row after the last draft.",
            laws.draft,
            "draft",
        ),
        hypothesis(
            "bonus_unprocessed",
            "The bonus token is drawn from the raw softmax; apply temperature, top-k and top-p to the last row too.",
            laws.alternative("unprocessed"),
            "unprocessed",
        ),
        hypothesis(
            "bonus_previous_row",
            "The bonus token is drawn from the row of the last draft; it must come from the row after it.",
            laws.alternative("previous_row"),
            "previous_row",
        ),
        hypothesis("bonus_argmax", "The bonus token is the target's arg max; it must be drawn.", laws.target_argmax),
    ]
