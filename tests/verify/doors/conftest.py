"""The sample log, made once."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.verify.doors import logs
from verify.adapters.log import LoggedDecoder
from verify.checks.log_audit import Audit
from verify.greedy.noise import NoiseFloor, measure_noise_floor
from verify.log.reader import read_log
from verify.models.pairs import checkpoint_pair
from verify.protocol import ModelPair
from verify.subject import Subject

Lines = list[dict[str, Any]]


class FakeJudge:
    """The little that a subject and a judge of a log ask for."""

    seed = 1

    def __init__(self) -> None:
        self.shared: dict[str, Any] = {}

    def progress(self, *_: object) -> None: ...


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture(scope="session")
def sample() -> Lines:
    return logs.sample_log()


@pytest.fixture
def lines(sample: Lines) -> Lines:
    return deepcopy(sample)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return checkpoint_pair(
        logs.FIXTURES / "target",
        None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        folder=tmp_path_factory.mktemp("models"),
        name="given-pair",
    )


@pytest.fixture(scope="session")
def noise(models: ModelPair, sample: Lines) -> NoiseFloor:
    return measure_noise_floor(models.target, [each["prompt_token_ids"] + each["token_ids"] for each in sample[:5]])


@pytest.fixture
def audit(models: ModelPair, noise: NoiseFloor, tmp_path: Path) -> Callable[[list[Any]], Audit]:
    def make(lines: list[Any]) -> Audit:
        log = read_log(logs.write(tmp_path / "log.jsonl", lines))
        decoder = LoggedDecoder(log, draft_model=False)
        audited = Audit(Subject(FakeJudge(), models, make_decoder=lambda _: decoder), log)  # type: ignore[arg-type]
        audited._noise = noise  # the same target each time
        return audited

    return make
