#!/usr/bin/env bash
# Installs one stack and the project (editable) into a virtual environment: tools/install.sh {onedl|openmmlab} VENV
# Running it again is quick: a stamp in VENV holds the checksum of every file that determines what is installed.
# MMCV_OPS=torchvision installs mmcv without compiled operators, which mmgcvit supplies; MMCV_OPS=compiled compiles them.
# By default VENV keeps what it has, and a new one does without. PYTHON is the interpreter to create VENV with,
# MMGCVIT_WHEELS the folder in which the built mmcv is cached.
set -euo pipefail
cd "$(dirname "$0")/.."

stack=${1:?usage: tools/install.sh onedl|openmmlab VENV}
venv=${2:?usage: tools/install.sh onedl|openmmlab VENV}
pins=requirements/$stack.txt
[ -f "$pins" ] || { echo "install.sh: unknown stack '$stack', there is no $pins (allowed: onedl, openmmlab)" >&2; exit 2; }
python=${PYTHON:-python3}
wheels=${MMGCVIT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mmgcvit/wheels}

ops=${MMCV_OPS:-}
if [ -z "$ops" ]; then
  ops=torchvision
  ! compgen -G "$venv/lib/python3*/site-packages/mmcv/_ext.*.so" >/dev/null || ops=compiled
fi
[[ $ops == @(torchvision|compiled) ]] || { echo "install.sh: MMCV_OPS=$ops; allowed: torchvision, compiled" >&2; exit 2; }

stamp=$venv/.mmgcvit-installed
state="$stack $ops $PWD $(cat "$pins" setup.py pyproject.toml tools/install.sh | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
  exec "$venv/bin/python" -m mmgcvit doctor
fi

last=13 # the newest Python for which there are wheels of the stack's torch
[ "$stack" = onedl ] || last=11
"$python" -c "import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, $last)
sys.exit(None if ok else f'install.sh: Python {sys.version.split()[0]} is not supported, only 3.10 to 3.$last: set PYTHON=...')"
[ $ops = torchvision ] || command -v c++ >/dev/null ||
  { echo "install.sh: MMCV_OPS=compiled needs a C++ compiler: apt-get install build-essential" >&2; exit 1; }
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
say() { printf '\n==> %s\n' "$*"; }

# Compiled operators are built against the installed torch, so torch and the build tools come first.
say "Installing torch (about 5 GB to download)"
tools=(setuptools wheel)
[ $ops = torchvision ] || tools+=(ninja psutil)
pip install -q -c "$pins" "${tools[@]}" numpy torch torchvision

# pip's own cache does not record which torch an mmcv was built against, and would reuse one built against another.
# So the wheel is cached in a folder named after everything that it depends on.
mmcv=$(grep -oE '^(onedl-)?mmcv==[0-9.a-z]+' "$pins")
if [ $ops = torchvision ]; then
  key=any-${mmcv/==/-}
else
  key=$("$venv/bin/python" -c 'import sys, torch
print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-" + ("cuda" if torch.cuda.is_available() else "cpu"))')-${mmcv/==/-}
fi
if [[ $key == *-cuda-* ]] && [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] && ! command -v nvcc >/dev/null; then
  echo "install.sh: MMCV_OPS=compiled needs nvcc to build for the GPU: install the CUDA toolkit that torch is built with" \
    "($("$venv/bin/python" -c 'import torch; print(torch.version.cuda)')), set CUDA_VISIBLE_DEVICES= to use the CPU," \
    "or MMCV_OPS=torchvision to use torchvision's operators" >&2
  exit 1
fi
mkdir -p "$wheels"
exec 9>"$wheels/$key.lock"
flock 9
if ! compgen -G "$wheels/$key/*.whl" >/dev/null; then
  building=$(mktemp -d "$wheels/$key.XXXXXX") source=$(mktemp -d)
  trap 'rm -rf "$building" "$source"' EXIT
  from_source=(--no-deps --no-cache-dir --no-build-isolation --no-binary :all:)
  build() {
    if [ $ops = torchvision ]; then
      # mmcv compiles its operators if its setup.py can import torch.
      echo 'raise ModuleNotFoundError("hidden from the setup.py of mmcv", name="torch")' >"$source/torch.py"
      PYTHONPATH=$source pip wheel "${from_source[@]}" -w "$building" "$mmcv"
      return
    fi
    pip download "${from_source[@]}" -d "$source" "$mmcv" &&
      tar -xf "$source"/*.tar.gz -C "$source" --strip-components 1 || return
    # mmcv 2.3.6 asks for C++17, torch for C++20 from 2.14 on.
    if grep -qs 'C++20 or later' "$venv"/lib/python3*/site-packages/torch/include/ATen/ATen.h; then
      sed -i 's/-std=c++17/-std=c++20/' "$source/setup.py"
    fi
    MMCV_WITH_OPS=1 CFLAGS="-g0 -O2" MAX_JOBS=$(nproc) pip wheel "${from_source[@]}" -w "$building" "$source"
  }
  if [ $ops = torchvision ]; then
    say "Building $mmcv without compiled operators into $wheels/$key"
  else
    say "Building $mmcv with its operators (6 to 17 minutes on 2 cores) into $wheels/$key"
  fi
  build >"$wheels/$key.log" 2>&1 || { tail -n 30 "$wheels/$key.log" >&2
    echo "install.sh: building $mmcv failed, see the full log: $wheels/$key.log" >&2; exit 1; }
  rm -rf "${wheels:?}/$key"
  mv "$building" "$wheels/$key"
fi
flock -u 9
pip install -q --no-deps --force-reinstall "$wheels/$key"/*.whl # the other kind has the same version

say "Installing the rest of the stack and mmgcvit (editable)"
extras=$stack,digits,report,test
# With the OpenMMLab stack, mim requires a setuptools that cannot build mmcv, and torch cannot export to ONNX.
[ "$stack" != onedl ] || extras+=,dev,mim,export,app,explain
pip install -q --no-build-isolation -c "$pins" -e ".[$extras]"
# opencv-python needs the system's libGL, which servers and containers often lack; the headless variant has the same cv2.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
  opencv=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("opencv-python"))')
  pip install -q --no-deps --force-reinstall "opencv-python-headless==$opencv"
fi

# For programs that import mmcv's operators before mmgcvit, such as some of mmdet's tools.
[ $ops = compiled ] || "$venv/bin/python" -m mmgcvit ops install >/dev/null
"$venv/bin/python" -m mmgcvit doctor
echo "$state" >"$stamp"
