#!/usr/bin/env bash
# Installs one stack and the project (editable) into a virtual environment: tools/install.sh {onedl|openmmlab} VENV
# Running it again is quick: a stamp in VENV holds the checksum of every file that determines what is installed.
#
# PYTHON          the interpreter to create VENV with; an existing VENV must have the same version of Python
# MMCV_OPS        torchvision: mmcv without compiled operators, which mmgcvit supplies; compiled: build them, which takes
#                 minutes. By default, VENV keeps what it has, and a new one does without.
# CPU=1           install the CPU builds of torch and torchvision, from TORCH_INDEX: 5 GB less to download; CPU=0: those
#                 with CUDA. By default, VENV keeps what it has, and a new one has CUDA.
# MMGCVIT_WHEELS  the folder in which a built mmcv is cached
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "install.sh: $*" >&2; exit 1; }
say() { printf '\n==> %s\n' "$*"; }

stack=${1:?usage: tools/install.sh onedl|openmmlab VENV}
venv=${2:?usage: tools/install.sh onedl|openmmlab VENV}
lock=requirements/$stack.txt
[ -f "$lock" ] || fail "unknown stack '$stack', there is no $lock (allowed: onedl, openmmlab)"
python=${PYTHON:-python3}
wheels=${MMGCVIT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mmgcvit/wheels}
ops=${MMCV_OPS:-$(compgen -G "$venv/lib/python3*/site-packages/mmcv/_ext.*.so" >/dev/null && echo compiled || echo torchvision)}
[[ $ops == torchvision || $ops == compiled ]] || fail "MMCV_OPS=$ops; allowed: torchvision, compiled"
# Whether torch's CPU build is installed: pip takes 2.12.1 and 2.12.1+cpu for the same version.
has_cpu=$(compgen -G "$venv/lib/python3*/site-packages/torch-*+cpu.dist-info" >/dev/null && echo 1 || echo 0)
cpu=${CPU:-$has_cpu}
[[ $cpu == 0 || $cpu == 1 ]] || fail "CPU=$cpu; allowed: 0, 1"

if [ -n "${PYTHON:-}" ] && [ -x "$venv/bin/python" ]; then
  command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: no such program"
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  wanted=$("$PYTHON" -c "$version") there=$("$venv/bin/python" -c "$version" || true)
  [ -z "$there" ] || [ "$wanted" = "$there" ] ||
    fail "$venv has Python $there, and PYTHON=$PYTHON is Python $wanted. To replace it: rm -rf $venv, and the same command"
fi

stamp=$venv/.mmgcvit-installed
state="$stack $ops cpu=$cpu $PWD $(cat "$lock" setup.py pyproject.toml tools/install.sh | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
  exec "$venv/bin/python" -m mmgcvit doctor
fi

last=13 # the newest Python for which there are wheels of the stack's torch
[ "$stack" = onedl ] || last=11
command -v "$python" >/dev/null || fail "PYTHON=$python: no such program"
"$python" -c "import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, $last)
sys.exit(None if ok else f'install.sh: Python {sys.version.split()[0]} is not supported, only 3.10 to 3.$last: set PYTHON=...')"
[ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] ||
  fail "$venv exists and is no virtual environment; allowed: a new folder"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
rm -f "$stamp"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Prints the entries of the lock file whose package name matches a pattern, or with `-v` those that do not.
locked() {
  local keep=1
  [ "$1" != -v ] || { keep=0; shift; }
  awk -v pattern="^($1)==" -v keep=$keep '/^[A-Za-z0-9]/ { show = ($0 ~ pattern) == keep } show' "$lock"
}
# Installs the entries that `locked` prints: exact versions, each file checked against its hash.
install_locked() {
  locked "$@" >"$scratch/requirements.txt"
  pip install -q --no-deps --no-build-isolation --require-hashes -r "$scratch/requirements.txt"
}

elsewhere='(onedl-)?mmcv(-lite)?'
install_locked 'setuptools|wheel' # for packages that have to be built
[ "$cpu" = "$has_cpu" ] || pip uninstall -qq -y torch torchvision
if [ "$cpu" = 1 ]; then
  index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
  say "Installing the CPU builds of torch and torchvision from $index"
  pip install -q --no-deps --index-url "$index" $(locked 'torch|torchvision' | grep -oE '^torch[a-z]*==[0-9.]+')
  elsewhere+='|torch|torchvision|triton|(cuda|nvidia)-.*' # what only the CUDA build needs
  say "Installing the rest of the stack"
else
  say "Installing the stack (about 5 GB to download, most of it torch's CUDA libraries; CPU=1 avoids them)"
  echo "This takes some minutes without further output."
fi
free=$(df -Pk "$venv" | awk 'NR == 2 { print int($4 / 1000000) }')
[ "$free" -ge 12 ] || echo "install.sh: only $free GB are free here; a new environment needs about 14 GB for a time" >&2
install_locked -v "$elsewhere" ||
  fail "the installation failed, see above. Run the same command again when the cause is fixed: it goes on from there"

# Replaces an installed mmcv; uninstalled first, because mmcv and mmcv-lite install the same files.
replace_mmcv() { pip uninstall -qq -y mmcv mmcv-lite onedl-mmcv && pip install -q --no-deps "$@"; }

case $stack-$ops in
  onedl-*) mmcv=onedl-mmcv ;;
  openmmlab-compiled) mmcv=mmcv ;;
  openmmlab-*) mmcv=mmcv-lite ;;
esac
locked "$mmcv" >"$scratch/mmcv.txt"
release=$(grep -oE "^$mmcv==[0-9.a-z]+" "$scratch/mmcv.txt")
if [ "$ops" = compiled ]; then
  command -v c++ >/dev/null || fail "mmcv's operators need a C++ compiler: apt-get install build-essential, or leave MMCV_OPS out"
  # pip's own cache does not record which torch an mmcv was built against, and would reuse one built against another.
  # So the wheel is cached in a folder named after everything that it depends on.
  key=$("$venv/bin/python" -c 'import sys, torch
print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-" + ("cuda" if torch.cuda.is_available() else "cpu"))')-${release/==/-}
  if [[ $key == *-cuda-* ]] && [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] && ! command -v nvcc >/dev/null; then
    fail "mmcv's operators need nvcc to be built for the GPU: install the CUDA toolkit that torch is built with" \
      "($("$venv/bin/python" -c 'import torch; print(torch.version.cuda)')), set CUDA_VISIBLE_DEVICES= to use the CPU," \
      "or leave MMCV_OPS out"
  fi
  mkdir -p "$wheels"
  exec 9>"$wheels/$key.lock"
  flock 9
  if ! compgen -G "$wheels/$key/*.whl" >/dev/null; then
    say "Building $release with its operators (6 to 17 minutes on 2 cores) into $wheels/$key"
    building=$(mktemp -d "$wheels/$key.XXXXXX")
    trap 'rm -rf "$scratch" "$building"' EXIT
    build() {
      pip download --no-deps --no-build-isolation --require-hashes -d "$scratch" -r "$scratch/mmcv.txt" &&
        mkdir "$scratch/source" && tar -xf "$scratch"/*.tar.gz -C "$scratch/source" --strip-components 1 || return
      # mmcv 2.3.6 asks for C++17, torch for C++20 from 2.14 on.
      if grep -qs 'C++20 or later' "$venv"/lib/python3*/site-packages/torch/include/ATen/ATen.h; then
        sed -i 's/-std=c++17/-std=c++20/' "$scratch/source/setup.py"
      fi
      MMCV_WITH_OPS=1 CFLAGS="-g0 -O2" MAX_JOBS=$(nproc) \
        pip wheel --no-deps --no-cache-dir --no-build-isolation -w "$building" "$scratch/source"
    }
    build >"$wheels/$key.log" 2>&1 || { tail -n 30 "$wheels/$key.log" >&2
      fail "building $release failed, see the full log: $wheels/$key.log"; }
    rm -rf "${wheels:?}/$key"
    mv "$building" "$wheels/$key"
  fi
  flock -u 9
  replace_mmcv "$wheels/$key"/*.whl
else
  say "Installing $release without compiled operators"
  # mmcv compiles its operators if its setup.py can import torch.
  mkdir "$scratch/hidden"
  echo 'raise ModuleNotFoundError("hidden from the setup.py of mmcv", name="torch")' >"$scratch/hidden/torch.py"
  PYTHONPATH=$scratch/hidden pip wheel -q --no-deps --no-cache-dir --no-build-isolation --require-hashes -w "$scratch" \
    -r "$scratch/mmcv.txt"
  replace_mmcv "$scratch"/*mmcv*.whl
fi

say "Installing mmgcvit (editable)"
pip install --no-deps -e . >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; fail "installing mmgcvit failed"; }
# OpenMMLab's mmengine looks for mmgcvit:: configs in site-packages, also of an editable package.
[ "$stack" != openmmlab ] || ln -sfn "$PWD/mmgcvit" "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmgcvit"
# For programs that import mmcv's operators before mmgcvit, such as some of mmdet's tools.
[ "$ops" = compiled ] || "$venv/bin/python" -m mmgcvit ops install >/dev/null
"$venv/bin/python" -m mmgcvit doctor
echo "$state" >"$stamp"
