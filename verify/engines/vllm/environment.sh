#!/bin/sh
# environment.sh VENV: vLLM's CPU build and, for `--verifier`, the suite's own dependencies; x86-64, Python 3.11, 3 GB, 3 minutes.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)

python3.11 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
"$venv/bin/python" -m pip install --quiet --no-deps --require-hashes --requirement "$here/wheel.txt"
"$venv/bin/python" -c 'import vllm; print(f"vLLM {vllm.__version__}")'
