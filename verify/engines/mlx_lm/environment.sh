#!/bin/sh
# environment.sh VENV: mlx (its CPU build on Linux) and mlx-lm; Python 3.11, 0.4 GB.
set -eu
venv=$1
here=$(cd "$(dirname "$0")" && pwd)

python3.11 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
"$venv/bin/python" -c 'from importlib.metadata import version; print("mlx-lm", version("mlx-lm"))'
