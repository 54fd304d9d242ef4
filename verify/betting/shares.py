"""Shares that are learned: how much of the positions a mistake acts at, found from the tokens already seen."""

import numpy as np

from verify.betting.evidence import Floats

# Shares stay fixed for so many tokens, counted from the first: often enough to learn, seldom enough to be fast.
WINDOW = 64
# Larger shares are bet by fixed ones, which need no learning.
LARGEST_SHARE = 0.5
# Worth so many tokens with gains of size 1: the first window cannot throw the share far.
PRIOR_CURVATURE = 10.0
# A bet on a token that is next to impossible may pay without bound; as curvature such a gain would freeze the share.
LARGEST_GAIN = 1e6


class LearnedShares:
    """One share for each of H hypotheses, moved after every `WINDOW` tokens by an online Newton step on its log wealth.

    With gains g = law/target - 1 and z = g / (1 + share g), the step is sum z / (prior + sum of z^2 over the whole past):
    for a small leak this is its running maximum-likelihood estimate, so the bet loses only some half a logarithm of the
    number of tokens against the best share, however small that is; a grid of shares sees nothing below half its smallest.
    Past tokens alone decide, so every bet stays fair. Source: Cutkosky & Orabona 2018, algorithm 1, in windows.
    """

    def __init__(self, num_hypotheses: int) -> None:
        self.shares = np.zeros(num_hypotheses)  # [H]
        self._curvature = np.full(num_hypotheses, PRIOR_CURVATURE)  # [H]
        self._slope = np.zeros(num_hypotheses)  # [H], of the present window
        self._squares = np.zeros(num_hypotheses)  # [H], of the present window
        self._left = WINDOW

    def bet(self, gains: Floats) -> Floats:
        """Stake on N tokens and learn from them: 1 + share gain of each, [H, N]; NaN (sitting out) stays NaN."""
        factors = np.empty_like(gains)
        start = 0
        while start < gains.shape[1]:
            window = gains[:, start : start + self._left]  # [H, W]
            staked = 1 + self.shares[:, None] * window
            factors[:, start : start + self._left] = staked
            scores = np.nan_to_num(np.minimum(window, LARGEST_GAIN) / staked, nan=0.0)
            self._slope += scores.sum(axis=1)
            self._squares += np.einsum("hw,hw->h", scores, scores)
            start += window.shape[1]
            self._left -= window.shape[1]
            if not self._left:
                self._end_window()
        return factors

    def step(self, slope: Floats, squares: Floats) -> None:
        """Move the shares by the sums of z and of z^2 over tokens bet on at the present shares, each [H]."""
        self._curvature += squares
        self.shares = np.clip(self.shares + slope / self._curvature, 0, LARGEST_SHARE)

    def _end_window(self) -> None:
        self.step(self._slope, self._squares)
        self._slope[:] = 0
        self._squares[:] = 0
        self._left = WINDOW
