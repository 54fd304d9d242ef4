"""A small causal LM drafts a tree, level by level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.drafters.model import to_vocabulary
from dspark.sampling import draw
from dspark.tree.branches import Branches
from dspark.tree.context import TreeContext
from dspark.tree.topology import Topology

Siblings = Literal["independent", "distinct", "best"]


@dataclass(frozen=True, slots=True)
class TreeProposal:
    """Drafts `[1, N]` by node, and the law that each was drawn from given its earlier siblings, `[1, N, V]`.

    A row without mass says that there is no such node: its parent had no token left for it.
    """

    token_ids: Tensor
    draft_probs: Tensor


class ModelTreeDrafter:
    """Drafts with a model over the target's token ids.

    Siblings are "independent" draws from the same law, "distinct" draws without replacement, or the "best" tokens, which are
    declared as certain (one-hot rows).
    """

    def __init__(self, model: PreTrainedModel, *, siblings: Siblings = "independent") -> None:
        self.model = CausalModel.of(model)
        self.siblings: Siblings = siblings

    def open(self) -> "ModelTreeSession":
        """Begin a request."""
        return ModelTreeSession(self.model, self.siblings)


class ModelTreeSession:
    """The draft model's context for one request; `slots` says where it has read which node of the newest tree."""

    def __init__(self, model: CausalModel, siblings: Siblings) -> None:
        self.model = model
        self.siblings = siblings
        self.context = TreeContext(model)
        self.slots: dict[int, int] = {}

    def affordable(self, depth: int, num_tokens: int) -> int:
        """As many levels as the draft model has positions for; it does not read the last one."""
        limit = self.model.max_positions
        return depth if limit is None else max(0, min(depth, limit - num_tokens + 1))

    def propose(self, *, text: Sequence[int], tree: Topology, branches: Branches, uniforms: Tensor) -> TreeProposal:
        """Draw a tree of at least one level below the text; node n uses `uniforms[0, n]` (`[1, N]` float64)."""
        vocab_size, device = branches.one.vocab_size, branches.one.device
        missing = torch.tensor([text[self.context.length :]], device=device)
        logits = self.context.append(self._readable(missing))  # [1, V of the draft]
        drafts = torch.zeros(1, len(tree.parents), dtype=torch.long, device=device)  # [1, N]
        laws = torch.zeros(1, len(tree.parents), vocab_size, dtype=branches.one.dtype, device=device)  # [1, N, V]
        parents = [-1]
        for depth in range(tree.depth):
            paths = torch.stack([drafts[0, tree.path(parent)] for parent in parents])  # [P, depth]
            scores = branches.scores(to_vocabulary(logits, vocab_size), paths)  # [P, V]
            for row, parent in enumerate(parents):
                self._draw_siblings(tree.children(parent), scores[row : row + 1], branches, uniforms, drafts, laws)
            parents = [node for node in tree.level(depth + 1) if tree.children(node)]
            if parents:
                above = [self.slots.get(tree.parents[node], -1) for node in parents]
                self.slots |= {node: len(self.slots) + place for place, node in enumerate(parents)}
                logits = self.context.branch(self._readable(drafts[:, parents]), above)[0]  # [P, V of the draft]
        return TreeProposal(drafts, laws)

    def observe(self, path: Sequence[int]) -> None:
        """Keep the nodes of the accepted branch, as far as they were read, and forget the rest of the tree."""
        self.context.commit([self.slots[node] for node in path if node in self.slots])
        self.slots = {}

    def _draw_siblings(
        self, nodes: Sequence[int], scores: Tensor, branches: Branches, uniforms: Tensor, drafts: Tensor, laws: Tensor
    ) -> None:
        """Fill in the children of one node, in place; `scores` `[1, V]`."""
        if self.siblings == "best":
            best = scores.topk(min(len(nodes), scores.shape[-1]), dim=-1)
            for place, node in enumerate(nodes[: best.indices.shape[1]]):
                drafts[:, node] = best.indices[:, place]
                possible = best.values[:, place] > -torch.inf
                laws[:, node] = torch.zeros_like(laws[:, node]).scatter(
                    -1, best.indices[:, [place]], possible[:, None].to(laws.dtype)
                )
            return
        law = branches.law(scores)  # [1, V]
        for node in nodes:
            drafts[:, node] = draw(law, uniforms[:, node])
            laws[:, node] = law
            if self.siblings == "distinct":
                rest = law.scatter(-1, drafts[:, [node]], 0.0)
                law = torch.where(rest.sum(-1, keepdim=True) > 0, rest / rest.sum(-1, keepdim=True), 0.0)

    def _readable(self, token_ids: Tensor) -> Tensor:
        """See `ModelDraftSession`: tokens that the draft model lacks are read as its last one."""
        return token_ids.clamp(max=self.model.vocab_size - 1)
