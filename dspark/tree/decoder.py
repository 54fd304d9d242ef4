"""The decoding loop with a draft tree in place of a block; one request after the other."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.randomness import round_uniforms
from dspark.request import DecodingRequest, Generation, validate
from dspark.row import Row
from dspark.tree.branches import Branches
from dspark.tree.context import TreeContext
from dspark.tree.drafter import ModelTreeDrafter, TreeProposal
from dspark.tree.topology import Topology
from dspark.tree.verification import TreeVerification, verify_tree


class TreeDecoder:
    """Decodes with a target and a drafter of trees; lossless like `SpeculativeDecoder`, and `seed` means the same.

    A request's `num_draft_tokens` is the depth to which the topology is used. In the record a round drafted as many tokens as the
    longest branch through the accepted ones has.
    """

    def __init__(self, target: PreTrainedModel, drafter: ModelTreeDrafter, topology: Topology) -> None:
        self.target = CausalModel.of(target)
        self.drafter = drafter
        self.topology = topology

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]:
        """Answer the requests in order; raises ValueError where one cannot be answered."""
        runs = [self._run(request) for request in requests]
        for run in runs:
            while not run.row.finish_reason:
                run.advance()
        return [run.row.generation() for run in runs]

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output round by round; closing the iterator cancels the request and leaves no trace."""
        return _rounds(self._run(request))

    def _run(self, request: DecodingRequest) -> "TreeRun":
        validate(request, vocab_size=self.target.vocab_size, max_positions=self.target.max_positions)
        return TreeRun(self.target, self.drafter, self.topology.upto(request.num_draft_tokens), request)


def _rounds(run: "TreeRun") -> Iterator[list[int]]:
    while not run.row.finish_reason:
        yield run.advance()


class TreeRun:
    """One request on its way; `advance` runs one round."""

    def __init__(
        self, target: CausalModel, drafter: ModelTreeDrafter, topology: Topology, request: DecodingRequest
    ) -> None:
        self.topology = topology
        self.row = Row.of(request)
        dtype = torch.float64 if target.model.dtype == torch.float64 else torch.float32
        self.branches = Branches(request, vocab_size=target.vocab_size, device=target.device, dtype=dtype)
        self.context = TreeContext(target)
        self.session = drafter.open()

    @torch.inference_mode()
    def advance(self) -> list[int]:
        """Run one round and return the tokens emitted."""
        row, device = self.row, self.branches.one.device
        text = row.token_ids
        if self.context.length < len(text) - 1:
            self.context.append(torch.tensor([text[self.context.length : -1]], device=device))
        tree = self.topology.upto(self.session.affordable(row.num_remaining - 1, len(text)))
        num_nodes = len(tree.parents)
        uniforms = round_uniforms([row.source], [len(self.topology.parents)], width=num_nodes, device=device)
        self.branches.begin(text)
        proposal = self._propose(text, tree, uniforms.draft)
        block = torch.cat([torch.tensor([[text[-1]]], device=device), proposal.token_ids], 1)  # [1, 1 + N]
        logits = self.context.branch(block, [-1, *(1 + parent for parent in tree.parents)])[0]  # [1 + N, V]
        scores = self._scores(logits, proposal.token_ids[0], tree)
        target_probs = self.branches.law(scores)
        verification = verify_tree(
            tree=tree,
            token_ids=proposal.token_ids,
            draft_probs=proposal.draft_probs,
            target_probs=target_probs[None],
            accept_uniforms=uniforms.accept,
            final_uniforms=uniforms.final,
        )
        return self._emit(tree, proposal.token_ids[0], scores, target_probs, verification)

    def _propose(self, text: list[int], tree: Topology, uniforms: Tensor) -> TreeProposal:
        if tree.depth:
            return self.session.propose(text=text, tree=tree, branches=self.branches, uniforms=uniforms)
        one = self.branches.one
        nothing = torch.zeros(1, 0, dtype=torch.long, device=one.device)
        return TreeProposal(nothing, torch.zeros(1, 0, one.vocab_size, dtype=one.dtype, device=one.device))

    def _scores(self, logits: Tensor, drafts: Tensor, tree: Topology) -> Tensor:
        """Scores after the anchor and each node, `[1 + N, V]`, each with the history of its branch."""
        levels = []
        for depth in range(tree.depth + 1):
            nodes = tree.level(depth)
            paths = torch.stack([drafts[tree.path(node)] for node in nodes])  # [n, depth]
            levels.append(self.branches.scores(logits[[1 + node for node in nodes]], paths))
        return torch.cat(levels)

    def _emit(
        self, tree: Topology, drafts: Tensor, scores: Tensor, target_probs: Tensor, verification: TreeVerification
    ) -> list[int]:
        row = self.row
        numbers = torch.cat(
            [verification.final_token_ids, verification.path[0], drafts, target_probs[:, 0].isnan().long()]
        ).tolist()  # the host waits here for the device
        final, nodes, rest = numbers[0], numbers[1 : 1 + tree.depth], numbers[1 + tree.depth :]
        path = [node for node in nodes if node >= 0]
        token_ids, is_nan = rest[: len(tree.parents)], rest[len(tree.parents) :]
        rows = [0, *(1 + node for node in path)]
        broken = [place for place, each in enumerate(rows) if is_nan[each]]
        if broken:
            raise ValueError(row.without_a_law(broken[0]))
        tokens = [*(token_ids[node] for node in path), final]
        logprobs: list[float] = []
        if row.request.logprobs:
            law = self.branches.sampled_law(scores[rows])  # [1 + accepted, V]
            emitted = torch.tensor(tokens, device=law.device)
            logprobs = law.gather(-1, emitted[:, None])[:, 0].log().tolist()
        num_drafted = len(path) + tree.height(path[-1] if path else -1)
        result = row.emit(tokens, logprobs, num_accepted=len(path), num_drafted=num_drafted)
        if not row.finish_reason:
            self.context.commit(rows)
            self.session.observe(path)
        return result
