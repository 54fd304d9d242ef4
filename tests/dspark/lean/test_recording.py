"""Recorded forwards read as plain ones do, are void when their memory is another, and are given up where they disagree."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from dspark import Request, SamplingParams, SpeculativeDecoder
from dspark.causal_model import CausalModel
from dspark.drafters.factory import random_drafter
from dspark.drafters.model import ModelDrafter
from dspark.lean import context as lean_context
from dspark.lean.context import LeanContext, fixed_step
from dspark.lean.forward import LeanForward
from dspark.lean.recording import Outputs, Recorder, Recording, Recordings
from tests.dspark.conftest import VOCAB_SIZE, build
from tests.dspark.test_cache import PROMPTS, exercise

Tiny = Callable[..., PreTrainedModel]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Static(Recorder):
    """Does on a CPU what a graph does: the same work over the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.num_recordings = self.num_replays = 0

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        self.num_recordings += 1
        outputs = run()

        def replay() -> None:
            self.num_replays += 1
            for old, new in zip(outputs, run(), strict=True):
                if old is not None and new is not None:
                    old.copy_(new)

        return replay, outputs


class Refusing(Static):
    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        self.num_recordings += 1
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong(Static):
    """Records the logits of the token before."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        logits, features = run()
        return super().record(lambda: (logits.roll(1, -1), features))


def opened(model: PreTrainedModel, num_rows: int, recorder: Recorder, taps: tuple[int, ...] = ()) -> LeanContext:
    forward = LeanForward(model)
    forward.recorder = recorder
    return LeanContext(model, forward, num_rows, cache_keyword="cache", taps=taps)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("smallest", [1, 64])
def test_reads_as_the_library(tiny: Tiny, kind: str, smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "SMALLEST", smallest)
    model, recorder = tiny(kind), Static()
    assert exercise(model, opened(model, len(PROMPTS), recorder), PROMPTS, rounds=14) < 1e-10
    assert exercise(model, opened(model, 1, recorder), [[1, 2, 3]], rounds=14, seed=1) < 1e-10
    assert recorder.num_replays > recorder.num_recordings > 0


def test_rows_that_come_and_go(tiny: Tiny) -> None:
    model, recorder = tiny("qwen3"), Static()
    context = opened(model, 2, recorder)
    forward = context.forward

    def newcomer() -> LeanContext:
        return LeanContext(model, forward, 1, cache_keyword="cache")

    for seed in range(3):
        assert exercise(model, context, [[1], [2, 3]], rounds=20, seed=seed, newcomer=newcomer) < 1e-10
        context = LeanContext(model, forward, 2, cache_keyword="cache")
    assert recorder.num_replays > recorder.num_recordings > 0


def test_outputs_are_not_overwritten_by_the_next_replay(tiny: Tiny) -> None:
    context, plain = opened(tiny("qwen3"), 1, Static(), taps=(0,)), opened(tiny("qwen3"), 1, Refusing(), taps=(0,))
    plain.recordings = None
    ours, theirs = (
        [each.extend(torch.tensor([[token]]), [1]) for token in (1, 2, 3, 4, 5)] for each in (context, plain)
    )
    for left, right in zip(ours, theirs, strict=True):
        assert left.features is not None
        assert right.features is not None
        assert (left.logits - right.logits).abs().max() < 1e-10
        assert (left.features - right.features).abs().max() < 1e-10


def kept(self: Recording, token_ids: Tensor, positions: Tensor) -> Outputs:
    """Gives the memory of the replay itself."""
    CALL(self, token_ids, positions)
    return self.outputs


def deaf(self: Recording, token_ids: Tensor, positions: Tensor) -> Outputs:
    """Goes on at the position where it was recorded."""
    return CALL(self, token_ids, self.positions)


def stale(self: Recordings, step: Any, token_ids: Tensor, positions: Tensor, memory: tuple[Tensor, ...]) -> Outputs:
    """Goes on in the memory that it was recorded over."""
    self.memory = memory
    return RUN(self, step, token_ids, positions, memory)


CALL, RUN = Recording.__call__, Recordings.run


@pytest.mark.parametrize(
    ("owner", "name", "mistake"),
    [
        (lean_context.Recordings, "run", stale),
        (Recording, "__call__", deaf),
        (lean_context, "places_of", lambda positions, num_rows, capacity: positions.expand(num_rows, -1)),
        (lean_context, "mask_of", lambda positions, span, dtype: torch.zeros(1, 1, 1, span, dtype=dtype)),
    ],
    ids=["stale memory", "deaf to positions", "all rows in one", "no mask"],
)
def test_a_planted_mistake_is_seen(
    tiny: Tiny, owner: Any, name: str, mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_context, "SMALLEST", 1)
    monkeypatch.setattr(owner, name, mistake)
    model = tiny("qwen3")
    try:
        difference = exercise(model, opened(model, len(PROMPTS), Static()), PROMPTS, rounds=30)
    except IndexError:  # past the end of the memory that was left
        return
    assert difference > 1e-3


def test_outputs_that_are_overwritten_are_seen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recording, "__call__", kept)
    with pytest.raises(AssertionError):
        test_outputs_are_not_overwritten_by_the_next_replay(tiny)


@pytest.mark.parametrize(
    ("recorder", "problem"), [(Refusing(), "not permitted"), (Wrong(), "its replay computes something else")]
)
def test_what_cannot_be_recorded_runs_plainly(tiny: Tiny, recorder: Static, problem: str) -> None:
    model = tiny("qwen3")
    with pytest.warns(UserWarning, match=problem):
        difference = exercise(model, opened(model, len(PROMPTS), recorder), PROMPTS, rounds=14)
    assert difference < 1e-10
    assert exercise(model, opened(model, 1, recorder), [[1, 2, 3]], rounds=14) < 1e-10  # without a second warning
    assert recorder.num_recordings == 1


def test_long_texts_and_wide_blocks_are_not_recorded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "MOST_RECORDED", (6, 32))
    recorder = Static()
    context = opened(tiny("llama"), 2, recorder)
    for _ in range(3):
        context.extend(torch.zeros(2, 4, dtype=torch.long), [4, 4])
        context.commit([4, 4])
    assert recorder.num_recordings == 0  # 64 slots, 8 tokens
    monkeypatch.setattr(lean_context, "MOST_RECORDED", (8, 64))
    for _ in range(3):
        context.extend(torch.zeros(2, 4, dtype=torch.long), [4, 4])
        context.commit([4, 4])
    assert recorder.num_recordings == 1


@pytest.fixture
def everything_recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Static]:
    """All short forwards share one recorder."""
    recorder, build_forward = Static(), LeanForward.__init__

    def recording(self: LeanForward, model: PreTrainedModel) -> None:
        build_forward(self, model)
        self.recorder = recorder

    with monkeypatch.context() as patch:
        patch.setattr(LeanForward, "__init__", recording)
        yield recorder


@pytest.mark.parametrize("drafter", ["model", "dspark", "eagle3"])
def test_decodes_the_same_text(tiny: Tiny, drafter: Any, everything_recorded: Static) -> None:
    def decoded() -> list[Any]:
        target = tiny("qwen3")
        drafts: Any = ModelDrafter(tiny("llama", seed=1))
        if drafter != "model":
            drafts = random_drafter(target, kind=drafter, dtype=torch.float64)
        requests = [
            Request(
                prompt_token_ids=prompt,
                max_new_tokens=20,
                num_draft_tokens=3,
                sampling=SamplingParams(temperature=1.0),
                seed=index,
            )
            for index, prompt in enumerate([(1, 2, 3), (4,), (5, 6, 7, 8)])
        ]
        return SpeculativeDecoder(target, drafts).generate(requests)

    recorded = decoded()
    assert everything_recorded.num_replays > everything_recorded.num_recordings > 0
    everything_recorded.is_trusted = False
    before = everything_recorded.num_replays
    assert decoded() == recorded
    assert everything_recorded.num_replays == before


class FromHost(TorchDispatchMode):  # type: ignore[misc]
    """Refuses what a graph cannot hold: tensors of the host, or a value that the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        assert all(each.device.type == "meta" for each in tensors), f"{func} reads the host"
        return func(*args, **(kwargs or {}))


def meta_step(kind: str, taps: tuple[int, ...]) -> tuple[Any, Tensor, Tensor]:
    with torch.device("meta"):
        model = build(kind).to("meta")
    forward = LeanForward(model)
    step = fixed_step(forward, forward.new_slots(2, 64), forward.rotations(64), taps)
    return step, torch.zeros(2, 3, dtype=torch.long, device="meta"), torch.zeros(2, 3, dtype=torch.long, device="meta")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_host_gives_and_takes_nothing_on_the_way(kind: str) -> None:
    step, token_ids, positions = meta_step(kind, (-1, 0))
    with torch.inference_mode(), FromHost():  # type: ignore[no-untyped-call]
        logits, features = step(token_ids, positions)
    assert logits.shape == (2, 3, VOCAB_SIZE)
    assert features is not None
    assert features.shape == (2, 3, 32)


def test_a_value_that_the_host_waits_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "mask_of", lambda positions, span, dtype: torch.zeros(int(positions.max())))
    step, token_ids, positions = meta_step("llama", ())
    with torch.inference_mode(), pytest.raises((RuntimeError, AssertionError)):
        step(token_ids, positions)


@on_gpu
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_graphs_of_a_gpu(tiny: Tiny, kind: str) -> None:
    model = tiny(kind, dtype=torch.float32)
    torch.nn.Module.to(model, torch.device("cuda"))
    target, plain = CausalModel.of(model), LeanForward(model)
    plain.recorder = None
    ours = target.lean.open(2, cache_keyword="cache", taps=(0,))
    theirs = LeanContext(model, plain, 2, cache_keyword="cache", taps=(0,))
    assert ours is not None
    assert ours.recordings is not None
    for round_number in range(12):
        block = torch.randint(VOCAB_SIZE, (2, 3), device="cuda")
        readings = [each.extend(block, [3, 2]) for each in (ours, theirs)]
        assert (readings[0].logits - readings[1].logits)[:, :2].abs().max() < 1e-4
        for each in (ours, theirs):
            each.commit([2 * round_number + 2, round_number + 1])
    assert any(ours.recordings.known.values())
    assert ours.recordings.recorder.is_trusted
