"""The tiny pair, an engine on it in this process, and its campaign."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.verify.doors.conftest import FakeJudge
from tests.verify.engines.pair import save_tiny_pair
from tests.verify.engines.workers.tiny import Tiny
from verify.adapters.engine import EngineInPlace
from verify.checks.log_audit import Audit
from verify.engines.campaign import Campaign, plan
from verify.engines.protocol import Failure, NoControl
from verify.engines.worker import plain, read_answer
from verify.greedy.noise import NoiseFloor
from verify.models.pairs import checkpoint_pair
from verify.protocol import Capabilities, Generation, ModelPair, Request
from verify.subject import Subject
from verify.suite.engines import repetitive, texts_of


class InProcess:
    """A worker's engine without the worker."""

    def __init__(self, engine: Tiny) -> None:
        self._engine = engine
        self.name = engine.name
        self.capabilities = Capabilities.of(engine.capabilities)
        self.concurrency = engine.concurrency
        self.same_seed_same_output = engine.same_seed_same_output

    def answer(
        self, requests: Sequence[Request], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, Generation | Failure]]:
        if self._engine.bug == "no control" and not speculative:
            raise NoControl("it always speculates")
        asked = [plain(request) for request in requests]
        for index, message in self._engine.answer(asked, speculative=speculative, concurrency=concurrency):
            yield index, read_answer(message)

    def close(self) -> None: ...


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_tiny_pair(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pair(tiny_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return checkpoint_pair(
        *tiny_dirs,
        device=torch.device("cpu"),
        dtype=torch.float32,
        folder=tmp_path_factory.mktemp("models"),
        name="given-pair",
    )


@pytest.fixture(scope="session")
def make_campaign(tiny_dirs: tuple[Path, Path], tiny_pair: ModelPair) -> Callable[[str], Campaign]:
    prompts = repetitive(texts_of(tiny_pair, [(3, 5), (7, 9), (11, 2), (4, 4), (40, 8), (21, 17)], seed=1))

    def make(bug: str, *, repeats: int = 3) -> Campaign:
        engine = InProcess(Tiny(*map(str, tiny_dirs), bug))
        groups = plan(prompts, engine, stop_token_ids=(0,), frequent=(5, 9, 17, 33), seed=1, repeats=repeats)
        return Campaign(engine, groups)

    return make


@pytest.fixture
def audit(tiny_pair: ModelPair) -> Callable[..., Audit]:
    def make(campaign: Campaign, *names: str, noise: NoiseFloor | None = None) -> Audit:
        judge: Any = FakeJudge()
        subject = Subject(judge, tiny_pair, make_decoder=lambda _: EngineInPlace(campaign.engine))
        return Audit(subject, campaign.log(*names), noise=noise)

    return make
