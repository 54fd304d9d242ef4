"""The law of a whole block under the standard rule and under known mistakes.

A case is one set of rows: target laws t_0 ... t_K and draft laws d_0 ... d_{K-1}, none of which depends on the drafted tokens.
A block that ends after n + 1 tokens is completed by the suite with draws from t_{n+1} ... t_K. Whatever lossless rule
made the block, the completed one follows the product of the t_k. Laws of completed blocks are arrays `[K + 1, C, ..., C]`: the
first axis is the number of accepted drafts, then one axis a position, over C classes of tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import TypeAlias

import numpy as np

from verify.betting.evidence import Floats, Ints

Masses: TypeAlias = tuple[Floats, Floats]
"""Mass of each token accepted as a draft, and emitted after a rejection; `[V]` each."""
Rule: TypeAlias = Callable[[Floats, Floats, Floats], Masses]
"""From the target's law, the draft's and the target's at the next position."""

# A rule that mixes positions is summed over every drafted block: for small cases only.
MOST_DRAFTED_BLOCKS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """`target` [K + 1, V], `draft` [K, V], and the class of each token, `classes` [V] in [0, num_classes)."""

    target: Floats
    draft: Floats
    classes: Ints
    num_classes: int

    @property
    def num_drafts(self) -> int:
        """K."""
        return len(self.draft)

    def cut(self, length: int) -> "Rows":
        """The rows of a block with fewer drafts."""
        return Rows(
            target=self.target[: length + 1],
            draft=self.draft[:length],
            classes=self.classes,
            num_classes=self.num_classes,
        )

    def binned(self, masses: Floats) -> Floats:
        """Sums by class of `masses` [V], `[C]`."""
        sums = np.bincount(self.classes, weights=masses, minlength=self.num_classes)
        return sums.astype(np.float64)


def _residual(target: Floats, draft: Floats) -> Floats:
    excess = np.maximum(target - draft, 0)
    total = excess.sum()
    return excess / total if total > 0 else target


def _then_residual(accepted: Floats, target: Floats, draft: Floats) -> Masses:
    return accepted, max(0.0, 1 - accepted.sum()) * _residual(target, draft)


def standard(target: Floats, draft: Floats, following: Floats) -> Masses:
    """Accept with min(1, target/draft), recover from max(target - draft, 0)."""
    return np.minimum(target, draft), np.maximum(target - draft, 0)


def _recovering(recover: Callable[[Floats, Floats, Floats], Floats]) -> Rule:
    def rule(target: Floats, draft: Floats, following: Floats) -> Masses:
        accepted = np.minimum(target, draft)
        return accepted, (1 - accepted.sum()) * recover(target, draft, following)

    return rule


def _absolute(target: Floats, draft: Floats, following: Floats) -> Floats:
    difference = np.abs(target - draft)
    total = difference.sum()
    return difference / total if total > 0 else target


def _uniform(target: Floats, draft: Floats, following: Floats) -> Floats:
    return np.full_like(target, 1 / target.size)


RULES: Mapping[str, tuple[str, Rule]] = {
    "everything_accepted": (
        "ACC: every draft is accepted; look at the coin, and at comparisons with NaN.",
        lambda target, draft, _: (draft, np.zeros_like(draft)),
    ),
    "nothing_accepted_from_residual": (
        "ACC: drafts are rejected without a coin and the token comes from the residual.",
        lambda target, draft, _: (np.zeros_like(draft), _residual(target, draft)),
    ),
    "accept_without_coin": (
        "ACC: a draft is accepted exactly when target >= draft; the test lacks its uniform coin.",
        lambda target, draft, _: _then_residual(np.where(target >= draft, draft, 0), target, draft),
    ),
    "acceptance_too_generous": (
        "ACC: drafts are accepted too often; look for lenience or a coin that is not uniform.",
        lambda target, draft, _: _then_residual(np.minimum(draft, 1.1 * target), target, draft),
    ),
    "acceptance_too_strict": (
        "ACC: drafts are accepted too seldom for the residual that follows.",
        lambda target, draft, _: _then_residual(0.9 * np.minimum(draft, target), target, draft),
    ),
    "residual_not_subtracted": (
        "RES: the recovered token comes from the target; subtract the draft law and renormalise.",
        _recovering(lambda target, draft, _: target),
    ),
    "recovered_from_draft": (
        "RES: the recovered token comes from the draft law.",
        _recovering(lambda target, draft, _: draft),
    ),
    "residual_absolute": ("RES: the residual is |target - draft|; clamp it at 0.", _recovering(_absolute)),
    "recovered_uniformly": (
        "RES: the recovered token is close to uniform; divide the clamped residual by its sum, not by a softmax.",
        _recovering(_uniform),
    ),
    "residual_next_row": (
        "RES: the residual uses the target row of the next position.",
        _recovering(lambda target, draft, following: _residual(following, draft)),
    ),
}
BONUS: Mapping[str, tuple[str, Callable[[Floats, Floats], Floats]]] = {
    "bonus_previous_row": (
        "BON: the bonus token comes from the target row of the last draft.",
        lambda target, draft: target[-2],
    ),
    "bonus_from_draft": ("BON: the bonus token comes from the last draft law.", lambda target, draft: draft[-1]),
    "bonus_argmax": (
        "BON: the bonus token is the target's arg max.",
        lambda target, draft: (np.arange(target.shape[1]) == target[-1].argmax()).astype(np.float64),
    ),
}
MIXING = {
    "mask_not_cumulative": "ACC: drafts after a rejection are counted as accepted; make the mask cumulative.",
    "one_coin_per_block": "ACC: one coin decides all drafts of a block; draw one for each.",
    "block_residual_not_scaled": (
        "RES: the block is judged as a whole, but its recovered token comes from max(target - draft, 0); scale the target by "
        "what the accepted drafts have left of the block."
    ),
}
LEAK = "everything_accepted"
EXPLANATIONS: Mapping[str, str] = {
    **{name: text for name, (text, _) in RULES.items()},
    **{name: text for name, (text, _) in BONUS.items()},
    **MIXING,
}


def standard_law(rows: Rows) -> Floats:
    """Joint law of (accepted, completed block) under the standard rule, `[K + 1, C, ..., C]`."""
    return _memoryless(rows, standard, rows.target[-1])


def mistaken_laws(rows: Rows) -> dict[str, Floats]:
    """The same under every known mistake."""
    if not rows.num_drafts:
        return dict.fromkeys(EXPLANATIONS, standard_law(rows))
    found = {name: _memoryless(rows, rule, rows.target[-1]) for name, (_, rule) in RULES.items()}
    found |= {name: _memoryless(rows, standard, law(rows.target, rows.draft)) for name, (_, law) in BONUS.items()}
    small = rows.target.shape[1] ** rows.num_drafts <= MOST_DRAFTED_BLOCKS
    for name, law in zip(MIXING, (_counting_all, _with_one_coin, _jointly_not_scaled), strict=True):
        found[name] = law(rows) if small else standard_law(rows)
    return found


def _outer(laws: list[Floats]) -> Floats:
    return reduce(np.multiply.outer, laws, np.ones(()))


def _memoryless(rows: Rows, rule: Rule, bonus: Floats) -> Floats:
    """Every position decides by `rule` alone."""
    target = [rows.binned(law) for law in rows.target]
    parts = []
    reached: list[Floats] = []
    for k in range(rows.num_drafts):
        accepted, recovered = rule(rows.target[k], rows.draft[k], rows.target[k + 1])
        parts.append(_outer([*reached, rows.binned(recovered), *target[k + 1 :]]))
        reached.append(rows.binned(accepted))
    return np.stack([*parts, _outer([*reached, rows.binned(bonus)])])


def _drafted(rows: Rows) -> list[tuple[tuple[int, ...], float, Floats]]:
    """Every drafted block with its probability and its ratios target/draft `[K]`."""
    blocks = []
    for tokens in product(range(rows.target.shape[1]), repeat=rows.num_drafts):
        drafts = np.array([rows.draft[k, token_id] for k, token_id in enumerate(tokens)])
        if drafts.prod() > 0:
            ratios = np.array([rows.target[k, token_id] for k, token_id in enumerate(tokens)]) / drafts
            blocks.append((tokens, float(drafts.prod()), ratios))
    return blocks


def _ended(rows: Rows, tokens: tuple[int, ...], count: int) -> Floats:
    """Law over the classes of a completed block that accepts the first `count` of `tokens`."""
    last = rows.target[count] if count == rows.num_drafts else _residual(rows.target[count], rows.draft[count])
    emitted = [np.eye(rows.num_classes)[rows.classes[token_id]] for token_id in tokens[:count]]
    return _outer([*emitted, rows.binned(last), *(rows.binned(law) for law in rows.target[count + 1 :])])


def _counting_all(rows: Rows) -> Floats:
    law = np.zeros((rows.num_drafts + 1, *[rows.num_classes] * (rows.num_drafts + 1)))
    for tokens, probability, ratios in _drafted(rows):
        accepts = np.minimum(ratios, 1)
        for stands in product((False, True), repeat=rows.num_drafts):
            chance = probability * float(np.where(stands, accepts, 1 - accepts).prod())
            law[sum(stands)] += chance * _ended(rows, tokens, sum(stands))
    return law


def _with_one_coin(rows: Rows) -> Floats:
    law = np.zeros((rows.num_drafts + 1, *[rows.num_classes] * (rows.num_drafts + 1)))
    for tokens, probability, ratios in _drafted(rows):
        standing = np.minimum.accumulate(np.concatenate([[1.0], ratios, [0.0]]))
        for count in range(rows.num_drafts + 1):
            law[count] += probability * (standing[count] - standing[count + 1]) * _ended(rows, tokens, count)
    return law


def _jointly_not_scaled(rows: Rows) -> Floats:
    """Block verification (Sun et al. 2024, algorithm 2) with the residual of the standard rule."""
    law = np.zeros((rows.num_drafts + 1, *[rows.num_classes] * (rows.num_drafts + 1)))
    for tokens, probability, ratios in _drafted(rows):
        weights = [1.0]  # what each prefix has left of the block
        for ratio in ratios:
            weights.append(min(1.0, weights[-1] * float(ratio)))
        for count in range(rows.num_drafts, -1, -1):  # the longest prefix that its own coin admits
            admitted = _admitted(rows, weights[count], count) if count else 1.0
            law[count] += probability * admitted * _ended(rows, tokens, count)
            probability *= 1 - admitted
    return law


def _admitted(rows: Rows, weight: float, count: int) -> float:
    """Probability with which block verification admits a prefix of `count` drafts that has left `weight`."""
    if count == rows.num_drafts:
        return weight
    excess = float(np.maximum(weight * rows.target[count] - rows.draft[count], 0).sum())
    missing = 1 - weight
    return excess / (excess + missing) if excess + missing > 0 else 1.0
