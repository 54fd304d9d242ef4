#!/bin/sh
# environment.sh VENV: ONNX Runtime GenAI and its model builder; x86-64, Python 3.11, 1.3 GB.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)

python3.11 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
"$venv/bin/python" -c 'from importlib.metadata import version; print("onnxruntime-genai", version("onnxruntime-genai"))'
