"""The user's text files, read as documents and cut into prompts."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.text_files import read_text

KEYS = ("prompt", "messages", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with the name of its domain; `is_prompt` says that it is a prompt as it stands, not to be cut."""

    text: str
    domain: str
    is_prompt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the target continues."""

    token_ids: tuple[int, ...]
    domain: str


def read_documents(paths: Iterable[Path], tokenizer: Any) -> list[Document]:
    """Read UTF-8 files: `.jsonl` holds one object a line, any other file is one document.

    An object has "prompt" (a prompt as it stands), "messages" (a chat, for the chat template) or "text" (a document), and may
    have "domain"; the default is the file's stem. Raises ValueError (value, rule, remedy) on anything else.
    """
    documents: list[Document] = []
    for path in paths:
        text = read_text(path)
        if path.suffix == ".jsonl":
            documents.extend(_objects(text, path, tokenizer))
        elif text.strip():
            documents.append(Document(text=text, domain=path.stem))
    return documents


def _objects(text: str, path: Path, tokenizer: Any) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"line {number} of {str(path)!r}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON ({error.msg}); .jsonl has one object a line.") from error
        key = next((key for key in KEYS if isinstance(entry, dict) and key in entry), None)
        if key is None:
            raise ValueError(f"{place} has none of the keys {', '.join(KEYS)}; an object needs one. Add one.")
        value = entry[key]
        if key == "messages":
            if not getattr(tokenizer, "chat_template", None):
                raise ValueError(f"{place} is a chat, and the target's tokenizer has no chat template; give a prompt.")
            value = tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=True)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place} has {key} = {value!r}; it must be a text that is not empty.")
        yield Document(text=value, domain=str(entry.get("domain", path.stem)), is_prompt=key != "text")


def cut_prompts(
    documents: Sequence[Document], tokenizer: Any, *, prompt_tokens: int, num_prompts: int, seed: int
) -> list[Prompt]:
    """At most `num_prompts` prompts in random order: windows of documents, and the end of what is a prompt already.

    A document gives as many windows of `prompt_tokens` tokens, side by side, as it holds; a shorter one gives itself.
    Raises ValueError where that leaves none.
    """
    prompts: list[Prompt] = []
    for document in documents:
        token_ids = tokenizer(document.text, add_special_tokens=document.is_prompt)["input_ids"]
        if document.is_prompt or len(token_ids) < prompt_tokens:
            windows = [token_ids[-prompt_tokens:]]
        else:
            starts = range(0, len(token_ids) - prompt_tokens + 1, prompt_tokens)
            windows = [token_ids[start : start + prompt_tokens] for start in starts]
        prompts.extend(Prompt(token_ids=tuple(window), domain=document.domain) for window in windows if window)
    if not prompts:
        raise ValueError(f"the text gives no prompt ({len(documents)} documents); one token is needed. Give more text.")
    random.Random(seed).shuffle(prompts)
    return prompts[:num_prompts]
