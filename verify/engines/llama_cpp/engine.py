"""The worker's engine: converts the checkpoints once, and opens the bindings or the server.

Options: `method` (draft_model, prompt_lookup: the Python bindings; server: llama-server), `threads` (1), `ngram` (2: longest
n-gram of prompt_lookup), `spec_type` (draft-simple: speculation of the server), `flags` (more of the server's, separated by
spaces; of the speculating one only).
"""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from verify.engines.llama_cpp.bindings import Bindings
from verify.engines.llama_cpp.conversion import write_gguf
from verify.engines.llama_cpp.server import Server

METHODS = ("draft_model", "prompt_lookup", "server")
KNOWN = ("method", "threads", "ngram", "spec_type", "flags")


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> Bindings | Server:
    """Open the engine; raises ValueError for settings that it does not have."""
    if unknown := sorted(set(options) - set(KNOWN)):
        raise ValueError(f"--engine {unknown[0]}=... is no option of llama_cpp; known: {', '.join(KNOWN)}")
    method = options.get("method", "draft_model")
    if method not in METHODS:
        raise ValueError(f"--engine method={method!r} must be one of {', '.join(METHODS)}")
    if device != "cpu" or dtype != "float32":
        raise ValueError(f"device {device!r} with {dtype} is not built here; use cpu and float32")
    config = json.loads((Path(target) / "config.json").read_text())
    target_file = _converted(Path(target), Path(folder) / "target.gguf")
    draft_file = None if draft is None else _converted(Path(draft), Path(folder) / "draft.gguf")
    context, threads = config["max_position_embeddings"], int(options.get("threads", 1))
    if method != "server":
        ngram = int(options.get("ngram", 2))
        return Bindings(
            target=target_file, draft=draft_file, method=method, context=context, threads=threads, ngram=ngram
        )
    return Server(
        program=Path(sys.executable).parent / "llama-server",
        target=target_file,
        draft=draft_file,
        version=f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}",
        spec_type=options.get("spec_type", "draft-simple"),
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
