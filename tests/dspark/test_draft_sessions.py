"""The state of a draft session: after any rounds its laws are those of the network read afresh from the whole text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark import Request, SamplingParams, SpeculativeDecoder
from dspark.causal_model import CausalModel
from dspark.drafters.dspark import DSparkDrafter, DSparkDraftSession
from dspark.drafters.eagle3 import Eagle3Drafter, Eagle3DraftSession
from dspark.drafters.factory import Kind, random_drafter
from dspark.drafters.protocol import DraftSession, Proposal
from dspark.drafters.states import RowStates
from dspark.networks.eagle3 import Eagle3Network
from dspark.sampling import Processors
from dspark.scheduler.protocol import ScheduleSession
from dspark.serving import Engine, Limits
from dspark.training.anchors import block_mask
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 9, 10))
SAMPLING = SamplingParams(temperature=0.9, top_k=20, presence_penalty=0.4)


@dataclass
class Asked:
    """One call of `propose`: the texts, what the laws were made with, and the answer."""

    token_ids: list[list[int]]
    processors: Processors
    proposal: Proposal


@dataclass
class Recorder:
    """A drafter that keeps what was asked of another one, and answered."""

    drafter: Any
    asked: list[Asked] = field(default_factory=list)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        layers: tuple[int, ...] = self.drafter.feature_layers
        return layers

    def open(self, num_rows: int) -> DraftSession:
        session = self.drafter.open(num_rows)
        propose, asked = type(session).propose, self.asked

        def recorded(
            session: Any, *, token_ids: Sequence[Sequence[int]], processors: Processors, **rest: Any
        ) -> Proposal:
            proposal: Proposal = propose(session, token_ids=token_ids, processors=processors, **rest)
            asked.append(Asked([list(ids) for ids in token_ids], processors, proposal))
            return proposal

        session.__class__ = type("Recorded", (type(session),), {"propose": recorded})  # copies are recorded too
        opened: DraftSession = session
        return opened


@torch.no_grad()
def read_afresh(target: PreTrainedModel, drafter: Any, text: list[int], drafts: list[int]) -> tuple[Tensor, Any]:
    """Logits `[K, V]` and confidences `[K]` (or None) of the drafts after a text: one forward of everything, no cache."""
    network = drafter.network
    size, anchor = network.block_size, torch.tensor([[len(text) - 1]])
    features = CausalModel.of(target).read(torch.tensor([text]), None, layers=network.feature_layers).features
    assert features is not None
    previous = torch.tensor([text[-1], *drafts, *[0] * size])[:size]
    if isinstance(network, Eagle3Network):
        rolled = network.rolled(features, torch.tensor([text]), anchor, previous[None, None])
        return network.logits(rolled[0, 0])[: len(drafts)], None
    mask = block_mask(anchor, num_positions=len(text), block_size=size)
    hidden = network.packed(features, torch.tensor([[text[-1]]]), anchor, mask)[0, 0]
    logits, confidences = network.teacher_forced(hidden, previous)
    return logits[: len(drafts)], None if confidences is None else confidences[: len(drafts)].sigmoid()


def worst_difference(
    target: PreTrainedModel, drafter: DSparkDrafter | Eagle3Drafter, decoder_of: Callable[..., Any] = SpeculativeDecoder
) -> float:
    """Decode a ragged batch in which rows finish one after the other; compare every proposal with reading afresh."""
    recorder = Recorder(drafter)
    decoder_of(target, recorder).generate(
        [
            Request(
                prompt_token_ids=prompt,
                max_new_tokens=7 + 6 * row,
                num_draft_tokens=2 + 2 * row,
                seed=row,
                sampling=SAMPLING,
            )
            for row, prompt in enumerate(PROMPTS)
        ]
    )
    worst, compared = 0.0, 0
    for asked in recorder.asked:
        history = asked.processors.history(asked.token_ids)
        drafts = asked.proposal.draft_token_ids
        for row, (text, length) in enumerate(zip(asked.token_ids, asked.proposal.draft_lengths, strict=True)):
            if length == 0:
                continue
            logits, confidences = read_afresh(target, drafter, text, drafts[row, :length].tolist())
            padded = logits.new_zeros(len(drafts), length, logits.shape[-1])
            padded[row] = logits
            law = asked.processors.probs(padded, history, drafts)[row]
            worst = max(worst, float((asked.proposal.draft_probs[row, :length] - law).abs().max()))
            if confidences is not None:
                assert asked.proposal.confidences is not None
                worst = max(worst, float((asked.proposal.confidences[row, :length] - confidences).abs().max()))
            compared += length
    assert compared > 20
    return worst


def drafter_of(target: PreTrainedModel, kind: Kind, **choices: Any) -> DSparkDrafter | Eagle3Drafter:
    return random_drafter(
        target, kind=kind, dtype=torch.float64, seed=1, target_layer_ids=(-1, 0), **{"block_size": 5, **choices}
    )


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("dspark", {"markov_head_type": "vanilla"}),
        ("dspark", {"markov_head_type": "gated"}),
        ("dspark", {"markov_head_type": "rnn"}),
        ("dflash", {}),
        ("eagle3", {}),
    ],
)
def test_a_session_says_what_reading_afresh_says(tiny: Tiny, family: str, kind: Kind, choices: dict[str, Any]) -> None:
    target = tiny(family)
    assert worst_difference(target, drafter_of(target, kind, **choices)) < 1e-12


def engine(target: PreTrainedModel, drafter: Any) -> Engine:
    """One whose rows join while others run, and come back after they had to wait."""
    return Engine(target, drafter, limits=Limits(max_rows=2, max_tokens=24))


def test_sessions_that_join_say_what_reading_afresh_says(tiny: Tiny) -> None:
    target = tiny("qwen3")
    kinds: list[Kind] = ["dspark", "eagle3"]
    for kind in kinds:
        assert worst_difference(target, drafter_of(target, kind), engine) < 1e-12


class Twice:
    """Answers, and then goes on from texts that begin like the answers, each cut at another place."""

    def __init__(self, target: PreTrainedModel, drafter: Any) -> None:
        self.engine = Engine(target, drafter, limits=Limits(max_rows=2))

    def generate(self, requests: Sequence[Request]) -> None:
        answers = self.engine.generate(requests)
        assert self.engine.counters.num_reused_tokens == 0
        texts = [each.prompt_token_ids + answer.token_ids for each, answer in zip(requests, answers, strict=True)]
        again = [
            replace(each, prompt_token_ids=(*text[: len(text) - cut], *branch), seed=cut)
            for each, text in zip(requests, texts, strict=True)
            for cut, branch in ((0, ()), (1, (0,)), (2, (0, 1)), (5, (0, 1, 2)))
        ]
        self.engine.generate(again)
        assert self.engine.counters.num_reused_tokens > sum(map(len, texts))


@pytest.mark.parametrize("kind", ["dspark", "eagle3"])
def test_sessions_that_were_copied_and_rewound_say_what_reading_afresh_says(tiny: Tiny, kind: Kind) -> None:
    target = tiny("qwen3")
    assert worst_difference(target, drafter_of(target, kind), Twice) < 1e-12


class Sparse(ScheduleSession):
    """Drafts in every third round: what the target reads in between waits."""

    def __init__(self) -> None:
        self.num_asked = 0

    def open(self) -> ScheduleSession:
        return self

    def wants_drafts(self, num_rows: int) -> bool:
        self.num_asked += 1
        return self.num_asked % 3 == 0

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        return tuple(map(len, confidences))


def sparse_decoder(target: PreTrainedModel, drafter: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(target, drafter, scheduler=Sparse())


def sparse_engine(target: PreTrainedModel, drafter: Any) -> Engine:
    return Engine(target, drafter, limits=Limits(max_rows=2), scheduler=Sparse())


@pytest.mark.parametrize("most", [1, 3, 32])
@pytest.mark.parametrize("decoder_of", [sparse_decoder, sparse_engine])
def test_sessions_that_read_late_say_what_reading_afresh_says(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, decoder_of: Callable[..., Any], most: int
) -> None:
    monkeypatch.setattr("dspark.drafters.dspark.MOST_UNREAD", most)
    target = tiny("qwen3")
    assert worst_difference(target, drafter_of(target, "dspark"), decoder_of) < 1e-12


def late_for_those_who_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a row leaves, what waits is lost."""
    select = DSparkDraftSession.select

    def wrong(self: DSparkDraftSession, rows: Sequence[int]) -> None:
        self.unread = []
        select(self, rows)

    monkeypatch.setattr(DSparkDraftSession, "select", wrong)


def first_of_them_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rounds that wait only the first is read."""
    read = DSparkDraftSession._read

    def wrong(self: DSparkDraftSession) -> None:
        self.unread = self.unread[:1]
        read(self)

    monkeypatch.setattr(DSparkDraftSession, "_read", wrong)


@pytest.mark.parametrize("mistake", [late_for_those_who_stay, first_of_them_only])
def test_sessions_that_lose_what_waits_do_not(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mistake(monkeypatch)
    target = tiny("qwen3")
    assert worst_difference(target, drafter_of(target, "dspark"), sparse_decoder) > 1e-3


def last_row_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy gets the entries of the last row."""
    copied = RowStates.copy

    def wrong(self: RowStates, rows: Sequence[int]) -> RowStates:
        twin = copied(self, [len(self.lengths) - 1] * len(rows))
        twin.lengths = [self.lengths[row] for row in rows]
        return twin

    monkeypatch.setattr(RowStates, "copy", wrong)


def nothing_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the target forgets stays in the drafter."""
    monkeypatch.setattr(DSparkDraftSession, "rewind", lambda self, lengths: list(lengths))


@pytest.mark.parametrize(("kind", "mistake"), [("dspark", nothing_forgotten), ("eagle3", last_row_copied)])
def test_sessions_that_are_rewound_wrongly_do_not(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, kind: Kind, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mistake(monkeypatch)
    target = tiny("qwen3")
    assert worst_difference(target, drafter_of(target, kind), Twice) > 1e-3


def rows_swapped(self: RowStates, other: RowStates) -> None:
    """Those who join stand before those who were there."""
    join(self, other)
    order = [*range(len(self.lengths) - len(other.lengths), len(self.lengths))]
    self.select([*order, *range(len(self.lengths) - len(other.lengths))])


join = RowStates.join


def test_sessions_that_join_in_the_wrong_order_do_not(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowStates, "join", rows_swapped)
    target = tiny("qwen3")
    assert worst_difference(target, drafter_of(target, "dspark"), engine) > 1e-3


def stale_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row keeps as many positions of a round as the row that accepted most, rejected drafts among them."""
    append = RowStates.append
    monkeypatch.setattr(
        RowStates, "append", lambda self, layers, counts: append(self, layers, [max(counts)] * len(counts))
    )


def features_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token gets the features of the token before it."""

    def late(kind: Any) -> None:
        observe = kind.observe

        def wrong(self: Any, *, token_ids: Tensor, counts: Sequence[int], features: Tensor) -> None:
            observe(self, token_ids=token_ids, counts=counts, features=features.roll(1, 1))

        monkeypatch.setattr(kind, "observe", wrong)

    late(DSparkDraftSession)
    late(Eagle3DraftSession)


def rows_not_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stay keep the context of those that have finished."""

    def wrong(self: RowStates, rows: Sequence[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]

    monkeypatch.setattr(RowStates, "select", wrong)


def padding_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter row attends to what lies behind its own entries."""
    visible = RowStates.visible
    monkeypatch.setattr(RowStates, "visible", lambda self: (visible(self)[0], None))


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("dspark", stale_context),
        ("dspark", features_one_late),
        ("eagle3", features_one_late),
        ("dspark", rows_not_selected),
        ("eagle3", rows_not_selected),
        ("dspark", padding_visible),
    ],
)
def test_a_session_with_a_planted_mistake_does_not(
    tiny: Tiny, kind: Kind, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny("qwen3")
    drafter = drafter_of(target, kind)
    plant(monkeypatch)
    assert worst_difference(target, drafter) > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn"])
def test_a_confidence_is_known_before_its_draft_is_drawn(tiny: Tiny, head: str) -> None:
    """Other uniforms from draft k on leave the confidences up to k as they are, and change the next."""
    target = tiny("qwen3")
    drafter = drafter_of(target, "dspark", markov_head_type=head)
    text = [3, 1, 4, 1, 5]
    features = CausalModel.of(target).read(torch.tensor([text[:-1]]), None, layers=drafter.feature_layers).features
    processors = Processors(
        [Request(prompt_token_ids=tuple(text), max_new_tokens=9)],
        vocab_size=VOCAB_SIZE,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )

    def proposal(uniforms: Sequence[float]) -> Proposal:
        session = drafter.open(1)
        session.observe(token_ids=torch.tensor([text[:-1]]), counts=[4], features=features)
        return session.propose(
            token_ids=[text],
            num_draft_tokens=[5],
            processors=processors,
            history=processors.history([text]),
            uniforms=torch.tensor([uniforms], dtype=torch.float64),
        )

    original = proposal([0.01] * 5)
    for k in range(5):
        other = proposal([0.01] * k + [0.99] * (5 - k))
        assert original.confidences is not None
        assert other.confidences is not None
        assert torch.equal(original.draft_token_ids[:, :k], other.draft_token_ids[:, :k])
        assert original.draft_token_ids[0, k] != other.draft_token_ids[0, k]
        assert torch.equal(original.confidences[:, : k + 1], other.confidences[:, : k + 1])
        assert torch.equal(original.draft_probs[:, : k + 1], other.draft_probs[:, : k + 1])
        if k + 1 < 5:
            assert original.confidences[0, k + 1] != other.confidences[0, k + 1]


@pytest.mark.parametrize("kind", ["dspark", "eagle3"])
def test_greedy_drafts_are_the_best_of_their_law_and_certain(tiny: Tiny, kind: Kind) -> None:
    target = tiny("llama")
    drafter = drafter_of(target, kind)
    drafter.greedy = True
    recorder = Recorder(drafter)
    SpeculativeDecoder(target, recorder).generate(
        [Request(prompt_token_ids=(1, 2, 3), max_new_tokens=20, num_draft_tokens=9, sampling=SAMPLING)]
    )
    compared = 0
    for asked in recorder.asked:
        assert set(asked.proposal.draft_probs.flatten().tolist()) == {0.0, 1.0}
        drafts = asked.proposal.draft_token_ids
        logits, _ = read_afresh(target, drafter, asked.token_ids[0], drafts[0].tolist())
        law = asked.processors.probs(logits[None], asked.processors.history(asked.token_ids), drafts)
        assert torch.equal(law.argmax(-1), drafts)
        compared += drafts.shape[1]
    assert compared > 20


def test_a_drafter_without_features_says_so(tiny: Tiny) -> None:
    for kind in ("dspark", "eagle3"):
        session = drafter_of(tiny("qwen3"), kind).open(1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="features is None; this drafter reads"):
            session.observe(token_ids=torch.tensor([[1]]), counts=[1], features=None)
