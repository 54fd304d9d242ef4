"""Engines with a worker of their own: `verify/engines/NAME/engine.py`, run in the environment that `environment.sh` makes."""

from collections.abc import Callable
from pathlib import Path

from verify.engines.protocol import EngineError, EngineSettings
from verify.engines.worker import WorkerEngine

FOLDER = Path(__file__).parent


def _bundled(name: str) -> Callable[[EngineSettings], WorkerEngine]:
    def make_engine(settings: EngineSettings) -> WorkerEngine:
        if settings.python is None:
            raise EngineError(
                f"{name} runs in an environment of its own; make it with `bash verify/engines/{name}/environment.sh VENV` "
                "and give --engine-python VENV/bin/python"
            )
        return WorkerEngine(settings, FOLDER / name / "engine.py")

    return make_engine


llama_cpp = _bundled("llama_cpp")
mlx_lm = _bundled("mlx_lm")
onnxruntime = _bundled("onnxruntime")
openvino = _bundled("openvino")
vllm = _bundled("vllm")
