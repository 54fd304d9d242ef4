"""The user's text files, read as documents and cut into prompts."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.chat import chat_text
from dspark.text_files import is_unicode, read_text

KEYS = ("prompt", "messages", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with the name of its domain; `is_prompt` says that it is a prompt as it stands, not to be cut.

    `is_chat`: the special tokens of a prompt are in the text already. `place` is where it was read, for errors.
    """

    text: str
    domain: str
    is_prompt: bool = False
    is_chat: bool = False
    place: str = ""


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
    for number, line in enumerate(text.split("\n"), 1):
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
            try:
                value = chat_text(value, tokenizer)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place} has {key} = {value!r}; it must be a text that is not empty.")
        if not is_unicode(value):
            raise ValueError(f"{place} has half of a surrogate pair in its {key}; text has whole ones. Correct it.")
        domain = str(entry.get("domain", path.stem))
        yield Document(text=value, domain=domain, is_prompt=key != "text", is_chat=key == "messages", place=place)


def cut_prompts(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    prompt_tokens: int,
    num_prompts: int,
    seed: int,
    longest: int | None = None,
) -> list[Prompt]:
    """At most `num_prompts` prompts in random order: windows of documents, and whole what is a prompt already.

    A document gives as many windows of `prompt_tokens` tokens, side by side, as it holds; a shorter one gives itself.
    Raises ValueError where that leaves none, or a prompt has more than `longest` tokens.
    """
    prompts: list[Prompt] = []
    for document in documents:
        special = document.is_prompt and not document.is_chat
        token_ids = tokenizer(document.text, add_special_tokens=special)["input_ids"]
        if document.is_prompt and longest is not None and len(token_ids) > longest:
            raise ValueError(
                f"{document.place or 'a prompt'} has {len(token_ids)} tokens; with the response the target has room for "
                f"{longest}. Shorten it, or lower --max-new-tokens."
            )
        if document.is_prompt or len(token_ids) < prompt_tokens:
            windows = [token_ids]
        else:
            starts = range(0, len(token_ids) - prompt_tokens + 1, prompt_tokens)
            windows = [token_ids[start : start + prompt_tokens] for start in starts]
        prompts.extend(Prompt(token_ids=tuple(window), domain=document.domain) for window in windows if window)
    if not prompts:
        raise ValueError(f"the text gives no prompt ({len(documents)} documents); one token is needed. Give more text.")
    random.Random(seed).shuffle(prompts)
    return prompts[:num_prompts]
