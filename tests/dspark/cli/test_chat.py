"""What the checkpoint says about conversations: the chat template, and the tokens that end a turn."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dspark.chat import stop_token_ids
from dspark.cli import main
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture
def target(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer puts w0 before every text."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="w0 $A", special_tokens=[("w0", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    tiny("qwen3").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def generate(target: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        options = ["--target", str(target), "--drafter", "ngram", "--dtype", "float64", "--device", "cpu"]
        code = main(["generate", *options, "--max-new-tokens", "12", *arguments])
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def test_chat_puts_the_prompt_into_the_template(generate: Callable[..., str], target: Path) -> None:
    assert "no chat template; a chat needs one" in generate("w1", "--chat")
    plain = generate("w5 w1 w2 w6", "--seed", "1")
    template = "{% for each in messages %}w0 w5 {{ each.content }} w6{% endfor %}"
    (target / "chat_template.jinja").write_text(template)
    assert generate("w1 w2", "--chat", "--seed", "1") == plain, "w0 once: the template's"
    assert generate("w1 w2", "--seed", "1") != plain


@pytest.mark.parametrize(("named", "expected"), [([1, 2], (1, 2)), (3, (3,)), (0, (0,)), (None, (9,))])
def test_stop_tokens_are_those_of_the_generation_config(
    named: list[int] | int | None, expected: tuple[int, ...], tiny: Tiny
) -> None:
    model = tiny("qwen3")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = named
    assert stop_token_ids(model, SimpleNamespace(eos_token_id=9)) == expected
    model.generation_config.eos_token_id = None
    assert stop_token_ids(model, SimpleNamespace(eos_token_id=None)) == ()


def test_any_stop_token_of_the_generation_config_ends_the_text(generate: Callable[..., str], target: Path) -> None:
    words = generate("w1 w2 w3", "--temperature", "0").split()
    assert len(words) == 12
    (target / "generation_config.json").write_text(f'{{"eos_token_id": [{words[3][1:]}, {words[5][1:]}]}}')
    end = min(words.index(words[3]), words.index(words[5]))
    assert generate("w1 w2 w3", "--temperature", "0").split() == words[: end + 1]
