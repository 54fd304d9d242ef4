"""A transformers checkpoint as the folder that ONNX Runtime GenAI opens; in the worker's environment only."""

import json
import subprocess
import sys
from pathlib import Path


def converted(checkpoint: Path, folder: Path) -> Path:
    """Convert once into `folder`, in float32, with the engine's own model builder."""
    if not (folder / "genai_config.json").is_file():
        arguments = ["-i", str(checkpoint), "-o", str(folder), "-p", "fp32", "-e", "cpu", "-c", str(folder / "cache")]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *arguments]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def set_threads(folder: Path, num_threads: int) -> None:
    """How many threads each model of a folder runs on: the engine would take one per core, and let them spin while idle."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in ("decoder", "draft"):
        if part in config["model"]:
            config["model"][part]["session_options"]["intra_op_num_threads"] = num_threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
