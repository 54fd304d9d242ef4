"""Counts of growing texts are those of the texts, whatever was asked before, and cost what is new."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dspark import token_counts
from dspark.token_counts import TokenCounts

texts = st.lists(st.integers(0, 4), max_size=8)


def counts() -> TokenCounts:
    return TokenCounts(vocab_size=5, device=torch.device("cpu"), dtype=torch.float64)


@given(st.lists(st.tuples(texts, texts, st.booleans()), max_size=6))
def test_counts_are_those_of_the_texts(rounds: list[tuple[list[int], list[int], bool]]) -> None:
    kept, asked, answers = counts(), [], []
    rows: list[list[int]] = [[], []]
    for first, second, grow in rounds:
        rows = [rows[0] + first, rows[1] + second] if grow else [first, second]
        asked.append([Counter(row) for row in rows])
        answers.append(kept.of(rows))
    for expected, found in zip(asked, answers, strict=True):  # what was given before is not written to
        assert found.tolist() == [[row[token_id] for token_id in range(5)] for row in expected]


def test_only_new_tokens_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = token_counts.to_device
    monkeypatch.setattr(token_counts, "to_device", lambda host, device: [sent.append(len(host)), send(host, device)][1])
    kept, text = counts(), [0, 1, 2] * 50
    for _ in range(3):
        kept.of([text, text])
        text += [3, 4]
    kept.of([text])
    assert sent == [300, 4, 4, 156]
