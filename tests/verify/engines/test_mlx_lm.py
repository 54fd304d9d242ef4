"""The mlx-lm worker without mlx: what it asks for, what it refuses, the rounds that it reads off drafted tokens."""

from typing import Any

import pytest

from tests.verify.engines.asked import a_request
from verify.engines.mlx_lm import engine as worker
from verify.protocol import Capabilities


def test_settings_go_to_the_sampler_and_to_the_processors() -> None:
    asked = a_request(temperature=0.7, top_k=4, repetition_penalty=1.3, logit_bias={7: 2.0}, forbidden_token_ids=(9,))
    sampler, processors = worker.settings_of(asked)
    assert sampler == {"temp": 0.7, "top_k": 4}
    assert processors["logit_bias"] == {7: 2.0, 9: -float("inf")}
    assert (processors["repetition_penalty"], processors["repetition_context_size"]) == (1.3, worker.WHOLE_TEXT)


def test_settings_that_are_off_are_no_processors() -> None:
    _, processors = worker.settings_of(a_request())
    assert (processors["logit_bias"], processors["repetition_penalty"]) == (None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"allowed_token_ids": (1,)},
        {"min_new_tokens": 2},
    ],
)
def test_what_it_lacks_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="mlx-lm"):
        worker.settings_of(a_request(**settings))


def test_claims_are_claims_of_the_protocol() -> None:
    claims = Capabilities.of({**dict.fromkeys(worker.CLAIMED, True), "logprobs": "raw"})
    assert claims.draft_model
    assert not claims.top_p


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda"}, "runs mlx on the CPU"),
        ({"dtype": "float64"}, "in float32 or bfloat16"),
        ({"draft": None}, "give --draft DIR"),
        ({"options": {"method": "ngram"}}, "method=... is no option of mlx_lm"),
    ],
)
def test_what_cannot_be_opened_is_said(settings: dict[str, Any], words: str) -> None:
    fixed: dict[str, Any] = {"target": "t", "draft": "d", "options": {}, "device": "cpu", "dtype": "float32"}
    with pytest.raises(ValueError, match=words):
        worker.open_engine(**{**fixed, "folder": "f", **settings})


@pytest.mark.parametrize(
    ("drafted", "drafts", "accepted", "roles"),
    [
        # 3 drafts a round, 8 tokens at most: the last round has room for fewer.
        ("ddd.d..d", [3, 3, 2, 1], [3, 1, 0, 1], "aaabarra"),
        ("d", [3], [1], "a"),  # a stop token that was drafted
        (".", [3], [0], "r"),
    ],
)
def test_rounds_end_with_a_token_that_was_not_drafted(
    drafted: str, drafts: list[int], accepted: list[int], roles: str
) -> None:
    asked = a_request(max_new_tokens=8, num_draft_tokens=3)
    found = worker.rounds_of([each == "d" for each in drafted], asked)
    assert found["record"]["drafted_per_step"] == drafts
    assert found["record"]["accepted_per_step"] == accepted
    assert "".join(each[0] for each in found["roles"]) == roles
    assert sum(found["record"]["acceptance_histogram"]) == found["record"]["num_spec_steps"] == len(drafts)
