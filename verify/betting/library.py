"""The library of bug hypotheses: it is the power of the betting test, and the vocabulary of its diagnosis."""

from functools import cache

from verify.betting import laws
from verify.betting.hypotheses import SHARES, Hypothesis
from verify.betting.round_mistakes import acceptance, at_drafts, bonus, draft_mismatch, residual, with_strength

# Every law here is known before the token at its position. The row one position later is not, because it depends on that
# token: a bet on it pays sum_x target(x) row_x(x)/target(x), up to V, and is no martingale.
ALTERNATIVES = {
    "unprocessed": "softmax of the model's logits at temperature 1, no processor",
    "no_temperature": "every processor but the temperature",
    "no_truncation": "every processor but top-k, top-p and min-p",
    "no_history": "processors that look at the history saw none",
    "stale_history": "penalties saw a history without the newest token",
    "previous_row": "the target row one position earlier",
    "other_request": "the row of another request of the batch",
    "uniform_again": "drawn with the uniform that drew the token before, by inversion",
    "noise_again": "drawn with the exponential or Gumbel noise that drew the token before",
    "draft_unprocessed": "the draft model's softmax at temperature 1, no processor",
    "draft_previous_row": "the draft model's row one position earlier",
}
# Laws that depend on where a round began. They explain an exact law, and no bet may be made on them: a correct rule other than
# the standard one may begin its rounds where later tokens say, and the bet would look ahead.
ALTERNATIVES_OF_ROUNDS = {
    "snapshot_history": "penalties saw the history as of the start of the round",
    "broken_history": "penalties saw a history without the token before the newest at the start of the round",
    "repeated_history": "penalties saw the first token of the round again in place of its later ones",
    "one_coin": "the standard rule with one coin for all drafts of a round",
}
STALE_HISTORIES = {
    "stale_history": "newest token missing",
    "snapshot_history": "as of the start of the round",
    "broken_history": "token before the newest missing",
    "repeated_history": "first token of the round in place of its later ones",
}
LEAK_SHARES = (0.002, 0.005, 0.0125, 0.03, 0.08)
# See `round_mistakes.BONUS_SHARES`: these are bet to act everywhere.
EVERYWHERE_SHARES = (0.6, 0.98)


def _everywhere() -> list[Hypothesis]:
    explanations = {
        "unprocessed": ("LOGP", "Tokens follow the raw softmax at temperature 1: no processor is applied."),
        "no_temperature": ("LOGP", "The temperature is ignored; the other processors are applied."),
        "no_truncation": ("LOGP", "Top-k, top-p or min-p is ignored; the other processors are applied."),
        "no_history": ("LOGP", "Penalties see no history; look at what the verification hands to the processors."),
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
    ] + [_stale_history("stale_history"), _drawn_again("one uniform"), _drawn_again("one noise")]


def _drawn_again(variant: str) -> Hypothesis:
    needed = variant.removeprefix("one ") + "_again"
    return Hypothesis(
        name="numbers_used_again",
        family="RNG",
        explanation="A token is drawn with the random numbers that drew the one before it; every draw needs its own.",
        variant=variant,
        formula=laws.alternative(needed),
        place="any",
        needs=(needed,),
    )


def _stale_history(alternative: str) -> Hypothesis:
    return Hypothesis(
        name="stale_history",
        family="LOGP",
        explanation="Penalties see another history than the row's own prefix: an old one, or a token is missing or doubled.",
        variant=STALE_HISTORIES[alternative],
        formula=laws.alternative(alternative),
        place="any",
        needs=(alternative,),
    )


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
        ),
        at_drafts(
            "NUM",
            "laws_rounded",
            "Target and draft laws are compared in bfloat16; keep probabilities in float32 or more.",
            laws.both_rounded,
            shares=(0.98,),
        ),
    ]


def _lossy() -> list[Hypothesis]:
    typical = {
        f"{kind} draft": laws.typical_acceptance(threshold=0.09, scale=0.3, greedy_draft=kind == "greedy")
        for kind in ("sampled", "greedy")
    }
    return [
        *with_strength(
            "LOSSY",
            "typical_acceptance",
            "Typical acceptance (entropy threshold, arg max after a rejection): lossy by design.",
            typical,
        ),
        # A weight of one half gives the law of `residual_absolute`: only how often drafts are accepted tells the two apart.
        *with_strength(
            "LOSSY",
            "ensemble",
            "Drafts are verified against a mixture of target and draft (ensemble verification): lossy by design.",
            {f"draft's weight {weight:g}": laws.ensemble(weight) for weight in (0.1, 0.2, 0.3)},
            shares=(0.98,),
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
        return with_strength("GENERIC", name, explanation, variants, everywhere=True, draft=False)

    def pulls(name: str, explanation: str, exponents: tuple[float, ...]) -> list[Hypothesis]:
        variants = {f"draft^{exponent:g}": laws.power(target=1, draft=exponent) for exponent in exponents}
        return with_strength("GENERIC", name, explanation, variants, everywhere=True)

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
    parts = (acceptance, residual, draft_mismatch, bonus, _everywhere, _numerics, _lossy, _generic)
    return tuple(hypothesis for part in parts for hypothesis in part())


@cache
def explanations_of_rounds() -> tuple[Hypothesis, ...]:
    """Hypotheses of `ALTERNATIVES_OF_ROUNDS`: they explain an exact law and are never bet on."""
    coin = at_drafts(
        "RNG",
        "coin_of_the_round",
        "One coin decides about all drafts of a round: behind an accepted draft it is known to be small. Draw one for each.",
        laws.alternative("one_coin"),
        "one_coin",
    )
    return coin, *(_stale_history(name) for name in STALE_HISTORIES if name in ALTERNATIVES_OF_ROUNDS)
