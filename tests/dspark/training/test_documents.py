import json
from pathlib import Path
from typing import Any

import pytest

from dspark.training.documents import Document, cut_prompts, read_documents


class Characters:
    """One token a character; a prompt begins with token 0."""

    chat_template: str | None = None

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [ord(character) for character in text]}

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return "".join(f"\0<{message['role']}>{message['content']}" for message in messages)


def written(folder: Path, *lines: object) -> Path:
    path = folder / "some.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_text_file_is_one_document_of_its_own_domain(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("dear")
    assert read_documents([path], Characters()) == [Document(text="dear", domain="letters")]


def test_each_line_of_jsonl_is_a_document_or_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a", "domain": "x"}, {"prompt": "b"})
    first, second = read_documents([path], Characters())
    assert first == Document(text="a", domain="x", place=f"line 1 of {str(path)!r}")
    assert second == Document(text="b", domain="some", is_prompt=True, place=f"line 2 of {str(path)!r}")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    """JSON may hold these as they are, and `json.dumps(..., ensure_ascii=False)` writes them so."""
    path = tmp_path / "some.jsonl"
    entry = json.dumps({"text": f"a{separator}b"}, ensure_ascii=False)
    path.write_bytes(f'{entry}\r\n{{"text": "c"}}\n'.encode())
    assert [document.text for document in read_documents([path], Characters())] == [f"a{separator}b", "c"]


def test_a_chat_goes_through_the_template(tmp_path: Path) -> None:
    path = written(tmp_path, {"messages": [{"role": "user", "content": "hi"}]})
    tokenizer = Characters()
    tokenizer.chat_template = "any"
    [document] = read_documents([path], tokenizer)
    assert document.text == "\0<user>hi"
    assert document.is_prompt
    [prompt] = cut_prompts([document], tokenizer, prompt_tokens=99, num_prompts=9, seed=0)
    assert bytes(prompt.token_ids) == b"\0<user>hi", "the template's own special tokens, and no others"
    (tmp_path / "some.jsonl").write_text('{"messages": [{"role": "user"}]}')
    with pytest.raises(ValueError, match=r"line 1 of .*the chat template does not take"):
        read_documents([path], tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"title": "a"}', "none of the keys"),
        ('{"text": 3}', "must be a text"),
        (r'{"text": "a\ud83d"}', "line 1 of .* has half of a surrogate pair in its text"),
        ("not json", "line 1 of .* is not JSON"),
        ('["text"]', "none of the keys"),
        ('{"messages": []}', "no chat template"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        read_documents([path], Characters())


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_documents([tmp_path / "none"], Characters())
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_documents([tmp_path / "binary"], Characters())


def test_documents_are_cut_side_by_side_and_prompts_are_not() -> None:
    documents = [
        Document(text="abcdefgh", domain="d"),
        Document(text="xy", domain="d"),
        Document(text="prompt", domain="q", is_prompt=True),
    ]
    prompts = cut_prompts(documents, Characters(), prompt_tokens=3, num_prompts=99, seed=0)
    texts = sorted("".join(map(chr, prompt.token_ids)) for prompt in prompts)
    assert texts == ["\0prompt", "abc", "def", "xy"]
    assert {prompt.domain for prompt in prompts if 0 in prompt.token_ids} == {"q"}


def test_a_prompt_that_leaves_no_room_is_refused_by_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a long document"}, {"prompt": "short"}, {"prompt": "longer"})
    documents = read_documents([path], Characters())
    settings: dict[str, Any] = {"prompt_tokens": 4, "num_prompts": 99, "seed": 0}
    assert len(cut_prompts(documents, Characters(), longest=7, **settings)) == 5
    with pytest.raises(ValueError, match=r"line 3 of .* has 7 tokens; with the response the target has room for 6\."):
        cut_prompts(documents, Characters(), longest=6, **settings)


def test_the_seed_decides_which_prompts_are_kept() -> None:
    documents = [Document(text="abcdefghijklmnopqrstuvwxyz", domain="d")]
    first, again, other = (
        cut_prompts(documents, Characters(), prompt_tokens=2, num_prompts=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(first) == 5


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="gives no prompt"):
        cut_prompts([], Characters(), prompt_tokens=2, num_prompts=5, seed=0)
