"""Planted bugs of recurrent state: what a rejected draft leaves behind where a cache cannot be cropped (SSM)."""

from typing import Any

from dspark.rowwise import SnapshotRow
from tests.mutants.mutant import Mutant


def crop_what_can_be(self: SnapshotRow, num_removed: int) -> None:
    """Keys and values are cropped; cropping a recurrent state is a no-op."""
    for layer in self.cache.layers:
        if hasattr(layer, "keys"):
            layer.crop(-num_removed)
    self.snapshot = None
    self.uncommitted = self.uncommitted[:, :0]


def replay_from_scratch(self: SnapshotRow, num_removed: int) -> None:
    """The kept drafts are replayed through an empty cache, and the state that this leaves is taken over."""
    kept = self.uncommitted[:, : self.uncommitted.shape[1] - num_removed]
    crop_what_can_be(self, num_removed)
    if num_removed and kept.shape[1]:
        scratch = self.model.new_cache()
        self.model.read(kept, scratch)
        for place, layer in enumerate(scratch.layers):
            if not hasattr(layer, "keys"):
                self.cache.layers[place] = layer


def no_replay(self: SnapshotRow, num_removed: int) -> None:
    """After a rejection the state of the block's start is taken back, and what was accepted is not read again."""
    if num_removed and self.snapshot is not None:
        self.cache = self.snapshot
    self.snapshot = None
    self.uncommitted = self.uncommitted[:, :0]


def ssm(row: str, source: str, mechanism: str, value: Any) -> Mutant:
    """One way to leave a recurrent state wrong."""
    return Mutant(
        id=row,
        family="SSM",
        source=source,
        mechanism=mechanism,
        patches={"dspark.rowwise.SnapshotRow.commit": value},
        check="test_06_state.py::test_recurrent_state",
        properties=("recurrent state",),
    )


MUTANTS = (
    ssm(
        "SSM-2",
        "https://github.com/ml-explore/mlx-lm/pull/1109",
        "trimming a recurrent state is a no-op: rejected drafts stay in it",
        crop_what_can_be,
    ),
    ssm(
        "SSM-3",
        "https://github.com/Pushkinist/rMLX/issues/436",
        "the kept drafts are replayed through an empty cache, and the state of that is taken over",
        replay_from_scratch,
    ),
    ssm(
        "SSM-a",
        "derived",
        "the state of the block's start is taken back without a replay of what was accepted",
        no_replay,
    ),
)
