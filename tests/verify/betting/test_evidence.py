import numpy as np
import pytest

from verify.betting.evidence import TokenEvidence

LAWS = np.array([[0.5, 0.5], [1.0, 0.0]])


def test_float32_rounding_is_renormalised():
    laws = (LAWS * (1 + 3e-6)).astype(np.float32)
    evidence = TokenEvidence(target_probs=laws, token_ids=[0, 0])
    assert evidence.target_probs.dtype == np.float64
    np.testing.assert_allclose(evidence.target_probs.sum(axis=1), 1, atol=1e-15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_probs": LAWS * 1.01}, "sums to 1.01"),
        ({"target_probs": np.array([[1.5, -0.5], [1, 0]])}, "minimum -0.5"),
        ({"draft_probs": np.array([[np.nan, 1.0], [1, 0]])}, "draft_probs"),
        ({"alternatives": {"unprocessed": LAWS[:1]}}, "unprocessed has shape"),
        ({"token_ids": [0, 2]}, "token id 2 is outside"),
        ({"token_ids": [0]}, "token_ids has shape"),
        ({"draft_offsets": [0, 1]}, "num_draft_tokens"),
        ({"roles": ["first"]}, "roles has shape"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenEvidence(**({"target_probs": LAWS, "token_ids": [0, 0]} | changes))


def test_chunks_cover_everything_in_order():
    evidence = TokenEvidence(
        target_probs=np.full((5, 3), 1 / 3),
        token_ids=[0, 1, 2, 1, 0],
        alternatives={"unprocessed": np.full((5, 3), 1 / 3)},
        draft_offsets=[0, 1, 2, 0, 1],
        num_draft_tokens=2,
        roles=["accepted", "accepted", "bonus", "accepted", "recovered"],
    )
    pieces = list(evidence.chunks(2))
    assert [piece.num_tokens for piece in pieces] == [2, 2, 1]
    assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == [0, 1, 2, 1, 0]
    assert np.concatenate([piece.draft_offsets for piece in pieces]).tolist() == [0, 1, 2, 0, 1]
    assert [role for piece in pieces for role in piece.roles] == list(evidence.roles)
    assert pieces[2].alternatives["unprocessed"].shape == (1, 3)
