"""The worker's side: `PYTHON serve.py ENGINE_FILE` runs in an engine's own environment and talks JSON lines.

Standard library only. The file defines `open_engine(*, target, draft, options, device, dtype, folder)`, which returns an
object with `name`, `capabilities`, `concurrency`, `same_seed_same_output` and
`answer(requests, *, speculative, concurrency)`, a generator of (index, answer) where an answer has the keys of
`verify.protocol.Generation`, or `failure` with a sentence. What the engine prints goes to the standard error.
"""

import json
import os
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO


def main() -> None:
    """Serve until the other side closes the pipe."""
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder: its engines are named like the libraries they drive
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # an engine that prints must not break the protocol
    engine: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "open" in message:
                engine = _load(Path(sys.argv[1])).open_engine(**message["open"])
                _send(out, {"ready": _described(engine)})
            else:
                for index, answer in engine.answer(**message["answer"]):
                    _send(out, {"index": index, **answer})
                _send(out, {"end": True})
        except NotImplementedError as error:
            _send(out, {"unsupported": str(error)})
        except Exception as error:
            traceback.print_exc()
            _send(out, {"error": _told(error)})
    if hasattr(engine, "close"):
        engine.close()


def _load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name!r} is no Python file; give the .py file that defines open_engine")
    sys.path.insert(0, str(path.parent))
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _told(error: Exception) -> str:
    """In one line; a ValueError is a sentence for who gave the value."""
    said = " ".join(str(error).split())
    return said if said and type(error) is ValueError else f"{type(error).__name__}: {said}"


def _described(engine: Any) -> dict[str, Any]:
    return {
        "name": engine.name,
        "capabilities": dict(engine.capabilities),
        "concurrency": list(engine.concurrency),
        "same_seed_same_output": bool(engine.same_seed_same_output),
    }


def _send(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
