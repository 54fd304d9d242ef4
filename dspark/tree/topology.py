"""The shape of a draft tree, fixed before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Topology:
    """Nodes by their parents, breadth first: `parents[n]` is an earlier node, or -1 for the anchor; siblings keep their order.

    Raises ValueError where a parent does not stand before its child or a level is split.
    """

    parents: tuple[int, ...]
    depths: tuple[int, ...] = field(init=False)
    """How deep each node is; children of the anchor are at 1."""

    def __post_init__(self) -> None:
        depths: list[int] = []
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(
                    f"node {node} has parent {parent}; it must be -1 or an earlier node. Number breadth first."
                )
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if depths != sorted(depths):
            raise ValueError(f"parents {self.parents} have depths {depths}; they must not fall. Number breadth first.")
        object.__setattr__(self, "depths", tuple(depths))

    @classmethod
    def of(cls, branching: Sequence[int]) -> "Topology":
        """Every node at depth d has `branching[d]` children."""
        parents: list[int] = []
        level = [-1]
        for width in branching:
            first = len(parents)
            parents += [parent for parent in level for _ in range(width)]
            level = list(range(first, len(parents)))
        return cls(tuple(parents))

    @classmethod
    def spine(cls, widths: Sequence[int]) -> "Topology":
        """`widths[d]` children at depth d, of which only the first goes on."""
        parents: list[int] = []
        first = -1
        for width in widths:
            parents += [first] * width
            first = len(parents) - width
        return cls(tuple(parents))

    @property
    def depth(self) -> int:
        """Length of the longest branch."""
        return self.depths[-1] if self.depths else 0

    def upto(self, depth: int) -> "Topology":
        """The first levels; nodes keep their numbers."""
        return Topology(self.parents[: sum(each <= depth for each in self.depths)])

    def level(self, depth: int) -> list[int]:
        """The nodes at a depth; the anchor (-1) at 0."""
        return [node for node, each in enumerate(self.depths) if each == depth] if depth else [-1]

    def children(self, node: int) -> list[int]:
        """In the order in which they are tried."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """The nodes from the anchor (left out) to this one."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def height(self, node: int) -> int:
        """Length of the longest branch below a node."""
        return max((1 + self.height(child) for child in self.children(node)), default=0)
