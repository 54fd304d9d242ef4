from collections import Counter
from pathlib import Path

import pytest
import torch

from dspark.causal_model import CausalModel
from dspark.training.corpus import continue_prompts, load_text, regenerate
from dspark.training.documents import Prompt
from tests.dspark.conftest import VOCAB_SIZE, build

PROMPTS = [Prompt(token_ids=(1, 2, 3), domain="a"), Prompt(token_ids=(4, 5), domain="b")] * 4


@pytest.fixture(scope="module")
def target() -> CausalModel:
    return CausalModel.of(build("qwen3"))


def test_continuations_follow_the_law_of_the_target(target: CausalModel) -> None:
    """Of two tokens, in a ragged batch; a total variation that 4000 samples show with certainty is 0.1."""
    count = 4000
    prompts = [[1, 2, 3], [4, 5]] * (count // 2)
    texts = continue_prompts(
        target, prompts, max_new_tokens=2, stop_token_ids=(), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        first = target.read(torch.tensor([[4, 5]]), None).logits[0, -1].softmax(-1)
        best = int(first.argmax())
        second = target.read(torch.tensor([[4, 5, best]]), None).logits[0, -1].softmax(-1)
    ours = [text[2:] for prompt, text in zip(prompts, texts, strict=True) if prompt == [4, 5]]
    for law, drawn in ((first, [text[0] for text in ours]), (second, [t[1] for t in ours if t[0] == best])):
        counts = Counter(drawn)
        share = torch.tensor([counts[token] / len(drawn) for token in range(VOCAB_SIZE)], dtype=law.dtype)
        assert (share - law).abs().max() < 5 * (0.25 / len(drawn)) ** 0.5


def test_a_stop_token_ends_its_row_alone(target: CausalModel) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = continue_prompts(
        target, [[1, 2, 3], [4, 5]] * 20, max_new_tokens=12, stop_token_ids=(7, 8, 9), generator=generator
    )
    for text, prompt in zip(texts, [3, 2] * 20, strict=True):
        response = text[prompt:]
        assert not set(response[:-1]) & {7, 8, 9}
        assert len(response) == 12 or response[-1] in (7, 8, 9)
    assert len({len(text) for text in texts}) > 2


def test_an_interrupted_regeneration_continues_to_the_same_text(target: CausalModel, tmp_path: Path) -> None:
    whole = regenerate(target, PROMPTS, tmp_path / "whole", max_new_tokens=5, batch_size=3)
    broken = tmp_path / "broken"
    regenerate(target, PROMPTS, broken, max_new_tokens=5, batch_size=3)
    kept = (broken / "text-00000.safetensors").stat().st_mtime_ns
    (broken / "text-00001.safetensors").unlink()
    (broken / "text-00002.safetensors").rename(broken / "text-00002.partial")
    again = regenerate(target, PROMPTS, broken, max_new_tokens=5, batch_size=3)
    assert torch.equal(again.token_ids, whole.token_ids)
    assert again.domains == ("a", "b") * 4
    assert again.num_response_tokens == 40
    assert (broken / "text-00000.safetensors").stat().st_mtime_ns == kept


def test_a_folder_holds_one_text(target: CausalModel, tmp_path: Path) -> None:
    regenerate(target, PROMPTS, tmp_path, max_new_tokens=5)
    with pytest.raises(ValueError, match="text of other seed"):
        regenerate(target, PROMPTS, tmp_path, max_new_tokens=5, seed=1)
    with pytest.raises(ValueError, match="text of other target_sha256"):
        regenerate(CausalModel.of(build("qwen3", seed=1)), PROMPTS, tmp_path, max_new_tokens=5)
    with pytest.raises(ValueError, match="text of other target_dtype"):
        regenerate(CausalModel.of(build("qwen3", dtype=torch.float32)), PROMPTS, tmp_path, max_new_tokens=5)
    with pytest.raises(ValueError, match="prompts_sha256"):
        regenerate(target, PROMPTS[1:], tmp_path, max_new_tokens=5)


def test_an_incomplete_folder_is_not_loaded(target: CausalModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no regenerated text"):
        load_text(tmp_path)
    regenerate(target, PROMPTS, tmp_path, max_new_tokens=5, batch_size=3)
    (tmp_path / "text-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks shard 1"):
        load_text(tmp_path)


def test_selected_sequences_lose_padding_that_none_needs(target: CausalModel, tmp_path: Path) -> None:
    text = regenerate(target, PROMPTS, tmp_path, max_new_tokens=5)
    few = text.select([1, 3])
    assert few.token_ids.shape == (2, 7)
    assert few.domains == ("b", "b")
    assert few.prompt_lengths.tolist() == [2, 2]


def test_no_room_in_the_target_is_an_error(target: CausalModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exceed the target's 64 positions"):
        regenerate(target, PROMPTS, tmp_path, max_new_tokens=62)
    with pytest.raises(ValueError, match="no prompt"):
        regenerate(target, [], tmp_path, max_new_tokens=2)
