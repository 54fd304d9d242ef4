#!/bin/sh
# environment.sh VENV: OpenVINO GenAI and optimum-intel; x86-64, Python 3.11, 1.6 GB.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)

python3.11 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
"$venv/bin/python" -c 'from importlib.metadata import version; print("openvino-genai", version("openvino-genai"))'
