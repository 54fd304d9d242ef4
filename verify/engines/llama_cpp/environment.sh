#!/bin/sh
# environment.sh VENV [JOBS]: llama-cpp-python and llama-server, both from the one source distribution and one build.
# Needs python3 (3.11 or later), a C++17 compiler, cmake and ninja; minutes to build on a quiet machine.
set -eu
venv=$1
jobs=${2:-1}
here=$(cd "$(dirname "$0")" && pwd)

python3 -m venv "$venv"
venv=$(cd "$venv" && pwd)
"$venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"

source=$venv/source
if [ ! -d "$source" ]; then
    sdist=$venv/sdist
    mkdir -p "$sdist"
    "$venv/bin/python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --require-hashes \
        --requirement "$here/sdist.txt" --dest "$sdist"
    mkdir -p "$source"
    tar -xzf "$sdist"/llama_cpp_python-*.tar.gz -C "$source" --strip-components 1
fi

# The options of the package's own build (shared libraries, no curl), and the server; no web pages, no TLS.
cmake -S "$source/vendor/llama.cpp" -B "$venv/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_SERVER=ON \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
nice cmake --build "$venv/build" -j "$jobs" --target llama mtmd llama-server

# The bindings find the libraries beside them, and the server (through its run path) in the build.
CMAKE_ARGS="-DLLAMA_BUILD=OFF" "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation "$source"
libraries=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp/lib
mkdir -p "$libraries"
cp -P "$venv"/build/bin/*.so* "$libraries/"
ln -sf ../build/bin/llama-server "$venv/bin/llama-server"
"$venv/bin/python" -c 'import gguf, llama_cpp; print(f"llama-cpp-python {llama_cpp.__version__}")'
