"""Laws for the rejection step: rows that differ by position, in every relation that makes a mistake visible."""

from collections.abc import Callable, Mapping

import numpy as np

from verify.betting.evidence import Floats
from verify.kernel.rules import Rows

# bfloat16 holds multiples of 1/256 up to 1 exactly: laws on this grid mean the same in every dtype.
GRID = 256


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    law: Floats = weights / weights.sum(-1, keepdims=True)
    return law


def _close(target: Floats, noise: Floats) -> Floats:
    return _softmax(np.log(0.9 * target + 0.1 / target.shape[-1]) + 0.7 * noise)


def _opposed(target: Floats, noise: Floats) -> Floats:
    reversed_law = np.empty_like(target)
    np.put_along_axis(reversed_law, target.argsort(-1), np.sort(target, -1)[..., ::-1], -1)
    mixed: Floats = 0.95 * reversed_law + 0.05 / target.shape[-1]
    return mixed


def _disjoint(target: Floats, noise: Floats) -> Floats:
    upper = target.argsort(-1).argsort(-1) >= target.shape[-1] // 2
    return _softmax(np.where(upper, -np.inf, noise))


def _peaked(target: Floats, noise: Floats) -> Floats:
    return _softmax(4 * np.log(target + 1e-3) + noise)


def _same(target: Floats, noise: Floats) -> Floats:
    return target.copy()


def _one_ulp(target: Floats, noise: Floats) -> Floats:
    """The float32 law with every entry moved to a neighbour: the residual is nothing but rounding."""
    return np.nextafter(target.astype(np.float32), np.where(noise > 0, 1, 0).astype(np.float32)).astype(np.float64)


def _denormal(target: Floats, noise: Floats) -> Floats:
    """All mass on the target's first half but for a denormal float32 entry on its last token."""
    law = _disjoint(target, noise)
    law[..., -1] = np.where(law[..., -1] == 0, 1e-41, law[..., -1])
    return law


RELATIONS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "close": _close,
    "opposed": _opposed,
    "disjoint": _disjoint,
    "peaked": _peaked,
    "same": _same,
    "one ulp": _one_ulp,
    "denormal": _denormal,
}


def rows_of(
    relation: str, *, vocab_size: int, num_drafts: int, seed: int, zeros: float = 0.0, num_classes: int | None = None
) -> Rows:
    """Random target rows, and draft rows in a relation to them.

    `zeros` is the share of tokens that the target never emits and the draft may propose, the same at every position.
    `num_classes` bundles tokens by target/draft: class 0 holds those of target probability 0, the others, from draft-liked to
    target-liked tokens, double in target mass from one to the next, so that few unverified drafts show.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_drafts + 1, vocab_size))
    hidden = np.zeros(vocab_size, dtype=bool)
    # The first and the last token before others: a draw that goes wrong ends up there.
    hidden[np.roll([*1 + random.permutation(vocab_size - 2), vocab_size - 1, 0], 2)[: int(zeros * vocab_size)]] = True
    target = _softmax(np.where(hidden, -np.inf, logits)).astype(np.float32).astype(np.float64)
    target /= target.sum(-1, keepdims=True)
    draft = RELATIONS[relation](target[:-1], random.normal(size=(num_drafts, vocab_size)))
    draft /= draft.sum(-1, keepdims=True)
    if num_classes is None:
        return Rows(target=target, draft=draft, classes=np.arange(vocab_size), num_classes=vocab_size)
    order = np.argsort(np.where(hidden, -1.0, target[0] / (draft[0] + 1e-12)), kind="stable")
    starts = np.cumsum(target[0][order]) - target[0][order]
    classes = np.empty(vocab_size, dtype=np.int64)
    classes[order] = 1 + np.searchsorted(0.5 ** np.arange(num_classes - 2, 0, -1), starts, side="right")
    classes[hidden] = 0
    return Rows(target=target, draft=draft, classes=classes, num_classes=num_classes)


def by_ranges(*, vocab_size: int, seed: int) -> Rows:
    """Ranges of ids with the same share of the target each, however few ids they hold: one that is never drawn shows.

    They end where kernels err: at the last whole tile of 128 and of 1,024, at half of the vocabulary, where an id needs its
    16th, 17th or 18th bit, and around the first and the last id. The draft prefers every second range, and other ids in each.
    """
    ends = {
        1,
        vocab_size // 2,
        vocab_size - 1,
        *(vocab_size - vocab_size % tile for tile in (128, 1024)),
        *(2**15, 2**16, 2**17),
    }
    bounds = sorted({0, vocab_size} | {end for end in ends if 0 < end < vocab_size})
    classes = np.searchsorted(bounds, np.arange(vocab_size), side="right") - 1
    random = np.random.default_rng(seed)
    shares = np.full(len(bounds) - 1, 1 / (len(bounds) - 1))

    def with_shares(weights: Floats, wanted: Floats) -> Floats:
        law: Floats = weights * (wanted / np.bincount(classes, weights))[classes]
        law /= law.sum()
        return law

    target = [with_shares(np.exp(random.normal(size=vocab_size)), shares) for _ in range(2)]
    preferred = np.where(np.arange(len(shares)) % 2, 1.6, 0.4)
    draft = with_shares(target[0] * np.exp(1.5 * random.normal(size=vocab_size)), shares * preferred)
    return Rows(target=np.stack(target), draft=draft[None], classes=classes, num_classes=len(shares))


def contested(num_drafts: int, place: int) -> Rows:
    """Two tokens; the first draft and that at `place` are rejected where their coins are high, all others are certain.

    If both are decided by one coin, the second token follows the first.
    """
    target = np.full((num_drafts + 1, 2), 0.5)
    draft = target[:-1].copy()
    target[[0, place]], draft[[0, place]] = (0.3, 0.7), (0.7, 0.3)
    return Rows(target=target, draft=draft, classes=np.arange(2), num_classes=2)


def half_left() -> Rows:
    """A first draft that leaves half of the block, and a residual after it that depends on how much is left.

    Rules that judge the block as a whole scale the target before they subtract the draft. In most laws that moves next to
    nothing (TV 0.005 at most in the other cases of chapter 16); here a residual that is not scaled makes TV 0.069.
    """
    target = np.array([[15, 9, 8], [13, 18, 1], [16, 10, 6]]) / 32
    draft = np.array([[30, 1, 1], [1, 9, 22]]) / 32
    return Rows(target=target, draft=draft, classes=np.arange(3), num_classes=3)


def on_grid(rows: Rows) -> Rows:
    """The nearest rows whose probabilities are multiples of 1/256."""

    def rounded(laws: Floats) -> Floats:
        counts = np.floor(laws * GRID)
        for row, law in zip(counts, laws, strict=True):
            short = int(GRID - row.sum())
            row[np.argsort(row - law * GRID)[:short]] += 1
        grid: Floats = counts / GRID
        return grid

    return Rows(
        target=rounded(rows.target),
        draft=rounded(rows.draft),
        classes=rows.classes,
        num_classes=rows.num_classes,
    )


def one_hot(token_id: int, vocab_size: int) -> Floats:
    """All mass on one token, `[V]`."""
    law: Floats = (np.arange(vocab_size) == token_id).astype(np.float64)
    return law
