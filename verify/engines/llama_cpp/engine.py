"""The worker's engine: converts the checkpoints once, and opens the bindings or the server.

Options: `method` (draft_model, prompt_lookup: the Python bindings; server: llama-server), `threads` (1), `ngram` (2: the
n-gram that is looked up, at most so long by prompt_lookup), `spec_type` (draft-simple or one of `LOOKUPS`: speculation of the
server), `flags` (more of the server's, separated by spaces; of the speculating one only).
"""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from verify.engines.llama_cpp.bindings import Bindings
from verify.engines.llama_cpp.conversion import write_gguf
from verify.engines.llama_cpp.server import LOOKUPS, Server
from verify.engines.options import choice, count, only

METHODS = ("draft_model", "prompt_lookup", "server")
SPEC_TYPES = ("draft-simple", *LOOKUPS)
KNOWN = ("method", "threads", "ngram", "spec_type", "flags")


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> Bindings | Server:
    """Open the engine; raises ValueError for settings that it does not have."""
    only(options, KNOWN, engine="llama_cpp")
    method = choice(options, "method", METHODS)
    spec_type = choice(options, "spec_type", SPEC_TYPES)
    threads, ngram = count(options, "threads", 1), count(options, "ngram", 2)
    if device != "cpu" or dtype != "float32":
        raise ValueError(f"device {device!r} with {dtype} is not built here; use cpu and float32")
    config = json.loads((Path(target) / "config.json").read_text())
    target_file = _converted(Path(target), Path(folder) / "target.gguf")
    draft_file = None if draft is None else _converted(Path(draft), Path(folder) / "draft.gguf")
    context = config["max_position_embeddings"]
    if method != "server":
        return Bindings(
            target=target_file, draft=draft_file, method=method, context=context, threads=threads, ngram=ngram
        )
    return Server(
        program=Path(sys.executable).parent / "llama-server",
        target=target_file,
        draft=draft_file,
        version=f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}",
        spec_type=spec_type,
        ngram=ngram,
        context=context,
        threads=threads,
        vocab_size=config["vocab_size"],
        flags=options.get("flags", "").split(),
        folder=Path(folder),
    )


def _converted(checkpoint: Path, file: Path) -> Path:
    if not file.exists():
        write_gguf(checkpoint, file)
    return file
