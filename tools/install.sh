#!/usr/bin/env bash
# Installs one stack and the project (editable) into a virtual environment: tools/install.sh {onedl|openmmlab} VENV
# Running it again is quick: a stamp in VENV holds the checksum of every file that determines what is installed.
# PYTHON is the interpreter to create VENV with, MMGCVIT_WHEELS the folder in which the built mmcv is cached.
set -euo pipefail
cd "$(dirname "$0")/.."

stack=${1:?usage: tools/install.sh onedl|openmmlab VENV}
venv=${2:?usage: tools/install.sh onedl|openmmlab VENV}
pins=requirements/$stack.txt
[ -f "$pins" ] || { echo "install.sh: unknown stack '$stack', there is no $pins (allowed: onedl, openmmlab)" >&2; exit 2; }
python=${PYTHON:-python3}
wheels=${MMGCVIT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mmgcvit/wheels}

stamp=$venv/.mmgcvit-installed
state="$stack $PWD $(cat "$pins" setup.py pyproject.toml tools/install.sh | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
  exec "$venv/bin/python" -m mmgcvit doctor
fi

last=13 # the newest Python for which there are wheels of the stack's torch
[ "$stack" = onedl ] || last=11
"$python" -c "import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, $last)
sys.exit(None if ok else f'install.sh: Python {sys.version.split()[0]} is not supported, only 3.10 to 3.$last: set PYTHON=...')"
command -v c++ >/dev/null || { echo "install.sh: mmcv needs a C++ compiler to be built: apt-get install build-essential" >&2; exit 1; }
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
say() { printf '\n==> %s\n' "$*"; }

# mmcv is built from source against the installed torch, so torch and the build tools come first.
say "Installing torch and the tools to build mmcv (about 5 GB to download)"
pip install -q -c "$pins" setuptools wheel ninja psutil numpy torch torchvision

# pip's own cache does not record which torch an mmcv was built against, and would reuse one built against another.
# So the wheel is cached in a folder named after everything that it depends on.
mmcv=$(grep -oE '^(onedl-)?mmcv==[0-9.a-z]+' "$pins")
key=$("$venv/bin/python" -c 'import sys, torch
print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-" + ("cuda" if torch.cuda.is_available() else "cpu"))')-${mmcv/==/-}
if [[ $key == *-cuda-* ]] && [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] && ! command -v nvcc >/dev/null; then
  echo "install.sh: mmcv's ops need nvcc to be built for the GPU: install the CUDA toolkit that torch is built" \
    "with ($("$venv/bin/python" -c 'import torch; print(torch.version.cuda)')), or set CUDA_VISIBLE_DEVICES= to use the CPU" >&2
  exit 1
fi
mkdir -p "$wheels"
exec 9>"$wheels/$key.lock"
flock 9
if ! compgen -G "$wheels/$key/*.whl" >/dev/null; then
  say "Building $mmcv with its ops (6 to 17 minutes on 2 cores) into $wheels/$key"
  building=$(mktemp -d "$wheels/$key.XXXXXX")
  trap 'rm -rf "$building"' EXIT
  MMCV_WITH_OPS=1 CFLAGS="-g0 -O2" MAX_JOBS=$(nproc) \
    pip wheel --no-deps --no-cache-dir --no-build-isolation --no-binary :all: -w "$building" "$mmcv" \
    >"$wheels/$key.log" 2>&1 || { tail -n 30 "$wheels/$key.log" >&2
      echo "install.sh: building $mmcv failed, see the full log: $wheels/$key.log" >&2; exit 1; }
  rm -rf "${wheels:?}/$key"
  mv "$building" "$wheels/$key"
fi
flock -u 9
pip install -q --no-deps "$wheels/$key"/*.whl

say "Installing the rest of the stack and mmgcvit (editable)"
extras=$stack,digits,report,test
# With the OpenMMLab stack, mim requires a setuptools that cannot build mmcv, and torch cannot export to ONNX.
[ "$stack" != onedl ] || extras+=,dev,mim,export,app,explain,docs
pip install -q --no-build-isolation -c "$pins" -e ".[$extras]"
# opencv-python needs the system's libGL, which servers and containers often lack; the headless variant has the same cv2.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
  opencv=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("opencv-python"))')
  pip install -q --no-deps --force-reinstall "opencv-python-headless==$opencv"
fi

"$venv/bin/python" -m mmgcvit doctor
echo "$state" >"$stamp"
