import pytest
import torch

from dspark.training.anchors import Blocks, block_mask, blocks_at, sample_blocks

TOKEN_IDS = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 0, 0, 0]])
LENGTHS = torch.tensor([8, 5])
PROMPTS = torch.tensor([3, 2])


def sampled(*, num_anchors: int, seed: int = 0) -> Blocks:
    return sample_blocks(
        TOKEN_IDS,
        LENGTHS,
        PROMPTS,
        num_anchors=num_anchors,
        block_size=3,
        generator=torch.Generator().manual_seed(seed),
    )


def test_a_block_is_the_text_after_its_anchor() -> None:
    anchors = torch.tensor([[2, 6], [1, 3]])
    blocks = blocks_at(TOKEN_IDS, LENGTHS, anchors, used=torch.ones(2, 2, dtype=torch.bool), block_size=3)
    assert blocks.previous_token_ids[:, :, 0].tolist() == [[12, 16], [21, 23]]
    assert blocks.draft_token_ids[0, 0].tolist() == [13, 14, 15]
    assert blocks.previous_token_ids[0, 0].tolist() == [12, 13, 14]
    assert blocks.valid.tolist() == [[[True] * 3, [True, False, False]], [[True] * 3, [True, False, False]]]
    assert blocks.draft_token_ids[0, 1, 0] == 17
    assert blocks.draft_token_ids[1, 1, 0] == 24


def test_the_row_of_a_draft_is_the_one_that_predicts_it() -> None:
    anchors = torch.tensor([[2, 5], [0, 1]])
    blocks = blocks_at(TOKEN_IDS, LENGTHS, anchors, used=torch.ones(2, 2, dtype=torch.bool), block_size=3)
    rows = blocks.rows_of(TOKEN_IDS.unsqueeze(-1))  # a state that names its own token
    assert torch.equal(rows.squeeze(-1)[blocks.valid], blocks.previous_token_ids[blocks.valid])


def test_anchors_are_different_and_in_the_response() -> None:
    blocks = sampled(num_anchors=3)
    for row, (prompt, length) in enumerate(zip(PROMPTS.tolist(), LENGTHS.tolist(), strict=True)):
        anchors = blocks.anchors[row].tolist()
        assert sorted(set(anchors)) == anchors
        assert all(prompt - 1 <= anchor <= length - 2 for anchor in anchors)


def test_a_short_response_gives_all_its_anchors_and_the_rest_is_unused() -> None:
    blocks = sampled(num_anchors=8)
    used = blocks.valid[:, :, 0]
    assert used.sum(1).tolist() == [5, 3]
    assert blocks.anchors[0][used[0]].tolist() == [2, 3, 4, 5, 6]
    assert blocks.anchors[1][used[1]].tolist() == [1, 2, 3]


def test_anchors_are_equally_likely() -> None:
    counts = torch.zeros(8)
    for seed in range(600):
        counts[sampled(num_anchors=1, seed=seed).anchors[0, 0]] += 1
    assert (counts > 0).tolist() == [False, False, True, True, True, True, True, False]
    assert (counts[2:7] - 120).abs().max() < 6 * (600 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("block_size", [1, 3])
def test_mask_equals_the_rule_written_as_loops(block_size: int) -> None:
    anchors = torch.tensor([[0, 2, 5], [4, 4, 1]])
    mask = block_mask(anchors, num_positions=6, block_size=block_size)
    assert mask.shape == (2, 1, 3 * block_size, 6 + 3 * block_size)
    for row in range(2):
        for query in range(3 * block_size):
            for key in range(6 + 3 * block_size):
                anchor = anchors[row, query // block_size]
                visible = key < anchor if key < 6 else (key - 6) // block_size == query // block_size
                assert bool(mask[row, 0, query, key]) == bool(visible)
