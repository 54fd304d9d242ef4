"""Known decoders on which the judge itself is checked: correct designs it must pass, and planted bugs it must catch.

Small and slow on purpose: no cache, float64, torch's own random primitives. What differs between them is one rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verify.models.law import next_token_laws
from verify.models.reference import Reference
from verify.protocol import Capabilities, Generation, ModelPair, Request

CLAIMS = Capabilities(
    greedy=True,
    sampled=True,
    stop_tokens=True,
    draft_model=True,
    arithmetic="float64",
)


@dataclass(frozen=True, slots=True)
class Block:
    """A drafted block: tokens, the law each was drawn from `[K, V]`, and the target's laws `[K + 1, V]`."""

    tokens: list[int]
    draft_laws: Tensor
    target_laws: Tensor


Verify = Callable[[Block], list[int]]


def draw(law: Tensor) -> int:
    """One token from a law `[V]`."""
    return int(torch.multinomial(law, 1).item())


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """The positive part of target - draft, normalised."""
    positive = (target - draft).clamp(min=0)
    return positive / positive.sum()


def walk(block: Block, *, accept: Callable[[int], bool], recovered: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """Accept from the left; at the first rejection draw from the recovered law; after all of them draw the bonus."""
    for offset in range(len(block.tokens)):
        if not accept(offset):
            law = recovered(block.target_laws[offset], block.draft_laws[offset])
            return [*block.tokens[:offset], draw(law)]
    return [*block.tokens, draw(block.target_laws[-1])]


def ratio(block: Block, offset: int) -> Tensor:
    """target/draft at the drafted token."""
    token_id = block.tokens[offset]
    return block.target_laws[offset, token_id] / block.draft_laws[offset, token_id]


def coin() -> Tensor:
    """A uniform number."""
    return torch.rand((), dtype=torch.float64)


def standard(block: Block) -> list[int]:
    """Accept with min(1, target/draft), else draw from the residual."""
    return walk(block, accept=lambda offset: bool(coin() < ratio(block, offset)), recovered=residual)


def coins_first(block: Block) -> list[int]:
    """The standard rule with all coins tossed before the first decision."""
    coins = torch.rand(len(block.tokens), dtype=torch.float64)
    return walk(block, accept=lambda offset: bool(coins[offset] < ratio(block, offset)), recovered=residual)


def sample_match(block: Block) -> list[int]:
    """Draw from the target at every position and go on while the draft guessed it: lossless, with another acceptance."""
    emitted: list[int] = []
    for offset, token_id in enumerate(block.tokens):
        emitted.append(draw(block.target_laws[offset]))
        if emitted[-1] != token_id:
            return emitted
    return [*emitted, draw(block.target_laws[-1])]


def without_residual(block: Block) -> list[int]:
    """Planted bug (RES-8): the recovered token is drawn from the target itself."""
    return walk(block, accept=lambda offset: bool(coin() < ratio(block, offset)), recovered=lambda target, _: target)


def without_coin(block: Block) -> list[int]:
    """Planted bug (ACC-14): accepted if and only if target >= draft."""
    return walk(block, accept=lambda offset: bool(ratio(block, offset) >= 1), recovered=residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A decoder by its parts: `one_hot` drafts the arg max; `threshold` ends a block where the draft is unsure of the next."""

    verify: Verify
    one_hot: bool = False
    threshold: float = 0.0


CORRECT: Mapping[str, Design] = {
    "standard": Design(verify=standard),
    "sample-match": Design(verify=sample_match),
    "coins first": Design(verify=coins_first),
    "one-hot drafts": Design(verify=standard, one_hot=True),
    "causal threshold": Design(verify=standard, threshold=0.45),
}
BROKEN: Mapping[str, Design] = {
    "RES-8 residual not subtracted": Design(verify=without_residual),
    "ACC-14 accept without a coin": Design(verify=without_coin),
}


class InstrumentDecoder:
    """Decode one request at a time by a `Design`."""

    def __init__(self, models: ModelPair, design: Design) -> None:
        self.capabilities = CLAIMS
        self.design = design
        self.target = Reference(models.target)
        self.draft = Reference(models.draft)
        self.known: dict[tuple[object, ...], Tensor] = {}

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer the requests one after the other."""
        return [self._generate_one(request) for request in requests]

    def _generate_one(self, request: Request) -> Generation:
        self.capabilities.refuse_unclaimed(request)
        output: list[int] = []
        while len(output) < request.max_new_tokens:
            for token_id in self.design.verify(self._block(request, output)):
                output.append(token_id)
                if token_id in request.stop_token_ids:
                    return Generation(token_ids=output, finish_reason="stop")
                if len(output) == request.max_new_tokens:
                    break
        return Generation(token_ids=output, finish_reason="length")

    def _block(self, request: Request, output: Sequence[int]) -> Block:
        """Draft up to num_draft_tokens tokens and score them."""
        tokens: list[int] = []
        laws: list[Tensor] = []
        num_known = len(request.prompt_token_ids) + len(output)
        while len(tokens) < min(request.num_draft_tokens, request.max_new_tokens - len(output) - 1):
            if not self.draft.has_room(num_known + len(tokens)):
                break
            law = self._laws(self.draft, request, (*output, *tokens))[-1]
            if tokens and float(law.max()) < self.design.threshold:  # known before the token is drawn
                break
            if self.design.one_hot:
                law = torch.nn.functional.one_hot(law.argmax(), law.shape[-1]).to(torch.float64)
            tokens.append(draw(law))
            laws.append(law)
        target_laws = self._laws(self.target, request, (*output, *tokens))[len(output) :]
        draft_laws = torch.stack(laws) if laws else target_laws[:0]
        return Block(tokens, draft_laws, target_laws)

    def _laws(self, model: Reference, request: Request, text: tuple[int, ...]) -> Tensor:
        """The law after every prefix of an output, `[len(text) + 1, V]`; remembered, since an exact law asks again and again."""
        # All of a request that is claimed and moves a law.
        key = (model, request.prompt_token_ids, request.sampling.temperature, text)
        if key not in self.known:
            self.known[key] = next_token_laws(model.logits(request, [*text, 0]), request, text)
        return self.known[key]


def maker(design: Design) -> Callable[[ModelPair], InstrumentDecoder]:
    """An adapter factory for a design."""
    return lambda models: InstrumentDecoder(models, design)
