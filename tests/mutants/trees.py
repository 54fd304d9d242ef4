"""Planted bugs of draft trees (TREE): siblings, shared prefixes, rows and states of branches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark.conformance import make_distinct_tree_decoder, make_tree_decoder
from dspark.sampling import draw
from dspark.tree.context import TreeContext
from dspark.tree.drafter import ModelTreeSession
from dspark.tree.topology import Topology
from dspark.tree.verification import TreeVerification
from dspark.verification import residual, trustworthy
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, Mutant

commit = TreeContext.commit
draw_siblings = ModelTreeSession._draw_siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRule:
    """Recursive rejection for one request; every switch but the default is one mistake.

    `one_token_subtracted` lowers the target at the rejected child only. `coin_per_path` tosses a coin for every branch that a
    child is on. `row_before` reads the target's row of the node numbered one lower. `nothing_subtracted` tries every sibling
    against the whole target.
    """

    one_token_subtracted: bool = False
    coin_per_path: bool = False
    row_before: bool = False
    nothing_subtracted: bool = False

    def __call__(
        self,
        *,
        tree: Topology,
        token_ids: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        accept_uniforms: Tensor,
        final_uniforms: Tensor,
    ) -> TreeVerification:
        """As `dspark.tree.verification.verify_tree`."""
        trusted = trustworthy(token_ids, draft_probs)[0].tolist()
        tokens = token_ids[0].tolist()
        left, at, path, moved = target_probs[0, 0].double(), -1, [], True
        while moved:
            moved = False
            for node in tree.children(at):
                draft = draft_probs[0, node].double()
                if not trusted[node]:
                    continue
                if self._accepts(tree, node, left[tokens[node]] / draft[tokens[node]], accept_uniforms[0, node]):
                    left, at, moved = target_probs[0, node + (0 if self.row_before else 1)].double(), node, True
                    path.append(node)
                    break
                left = self._rest(left, draft, tokens[node])
        nodes = [*path, *[-1] * (tree.depth - len(path))]
        return TreeVerification(torch.tensor([nodes], device=token_ids.device), draw(left[None], final_uniforms))

    def _accepts(self, tree: Topology, node: int, ratio: Tensor, uniform: Tensor) -> bool:
        if bool(uniform < ratio):
            return True
        leaves = sum(not tree.children(each) and node in tree.path(each) for each in range(len(tree.parents)))
        more = leaves - 1 if self.coin_per_path else 0
        return any(bool(torch.rand((), dtype=torch.float64) < ratio) for _ in range(more))

    def _rest(self, left: Tensor, draft: Tensor, token_id: int) -> Tensor:
        if self.nothing_subtracted:
            return left
        subtracted = draft
        if self.one_token_subtracted:
            subtracted = torch.zeros_like(draft)
            subtracted[token_id] = draft[token_id]
        rest = residual(left[None], subtracted[None])[0]
        return rest / rest.sum()


def first_branch_kept(self: TreeContext, kept: Sequence[int]) -> None:
    """What is kept in the cache is the first branch, whichever was accepted."""
    commit(self, range(len(kept)))


def declared_with_replacement(self: ModelTreeSession, nodes: Sequence[int], *arguments: Any) -> None:
    """Siblings are drawn without replacement and declared as independent draws."""
    draw_siblings(self, nodes, *arguments)
    laws: Tensor = arguments[-1]
    for node in nodes:
        laws[:, node] = laws[:, nodes[0]]


def tree(row: str, source: str, mechanism: str, value: Any, **fields: Any) -> Mutant:
    """One bug; by default it stands for the rule that verifies a tree of independent siblings."""
    given: dict[str, Any] = {
        "patches": {"dspark.tree.decoder.verify_tree": value},
        "make": make_tree_decoder,
        "check": EXACT,
        "properties": (*LAW, "greedy identity", "greedy controls"),
        **fields,
    }
    return Mutant(id=row, family="TREE", source=source, mechanism=mechanism, **given)


EAGLE = "https://github.com/SafeAILab/EAGLE/commit"
ROLLBACK = "test_01_greedy.py::test_identity_on_tables[table-v64-close-seed101]"
MUTANTS = (
    tree(
        "TREE-1",
        f"{EAGLE}/2f982e249fc1f171f9f8e2cccfee8acd4087bb2a",
        "a rejected sibling lowers the target at its own token only, instead of by its whole law",
        TreeRule(one_token_subtracted=True),
        make=make_distinct_tree_decoder,
    ),
    tree(
        "TREE-2",
        f"{EAGLE}/b09a25631df11d4b376fc5a3106d08b51d4bf7a3",
        "branches share a child, and each tosses a coin of its own for it",
        TreeRule(coin_per_path=True),
    ),
    tree(
        "TREE-5",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/15098",
        "the target's law is read from the slice before the node's",
        TreeRule(row_before=True),
    ),
    tree(
        "TREE-8",
        "https://github.com/aiola-lab/whisper-medusa/pull/30",
        "after the verification the state of the first branch is kept, whichever was accepted",
        None,
        patches={"dspark.tree.context.TreeContext.commit": first_branch_kept},
        check=ROLLBACK,
    ),
    tree(
        "TREE-a",
        "derived",
        "later siblings are tried against the whole target",
        TreeRule(nothing_subtracted=True),
    ),
    tree(
        "TREE-b",
        "derived",
        "siblings are drawn without replacement and declared as independent draws",
        None,
        patches={"dspark.tree.drafter.ModelTreeSession._draw_siblings": declared_with_replacement},
        make=make_distinct_tree_decoder,
    ),
)
