"""What is continued: held-out documents in the target's tokens, all cut to one length."""

import random
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer

from fixtures.corpus import documents_of, is_held_out, source_files
from verify.protocol import ModelPair


def read_prompts(models: ModelPair, *, num_tokens: int, at_most: int) -> tuple[list[tuple[int, ...]], str]:
    """Prompts of `num_tokens` tokens, and what they are; random tokens for a target without a tokenizer.

    Held out means that the fixture target was not trained on these files of Python's standard library.
    """
    if models.tokenizer_dir is None:
        numbers = random.Random(0)
        rows = [tuple(numbers.randrange(models.vocab_size) for _ in range(num_tokens)) for _ in range(at_most)]
        return rows, "random tokens, because the target has no tokenizer"
    tokenizer = Tokenizer.from_file(str(models.tokenizer_dir / "tokenizer.json"))
    encoded = [each.ids for each in tokenizer.encode_batch(_documents())]
    long_enough = [tuple(ids[:num_tokens]) for ids in encoded if len(ids) >= num_tokens]
    spread = long_enough[:: max(1, len(long_enough) // at_most)][:at_most]
    if not spread:
        raise ValueError(
            f"no held-out document has {num_tokens} tokens; prompts are cut from them. Ask for shorter ones."
        )
    return spread, "beginnings of held-out documents of Python's standard library"


def _documents() -> list[str]:
    base = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    for path in source_files(base):
        if is_held_out(path.relative_to(base).as_posix()):
            found.extend(documents_of(path.read_text(encoding="utf-8", errors="replace")))
    return found
