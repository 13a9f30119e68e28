#!/bin/sh
# tiny, image 58b6332c3c9a661da8599f1b8a7a9521110d73554a3003e58341676c0e0fb5c5
# What the Dockerfile of this image does, on a machine without containers. Packages of the distribution need root or
# sudo without a password; all else is the user's own.
(
set -eu
umask 022
unset PYTHONPATH PYTHONHOME
root=${FT_SETUP_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/ft/environments}
mkdir -p "$root"
root=$(cd "$root" && pwd)
python_version=3.11
source_sha256=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
source_tar=${FT_SOURCE_TAR:-ft-source.tar}
venv=$root/python-c8bdc7c2f01f204a
source=$root/source-0123456789abcdef
env_file=$root/env-58b6332c3c9a661d.sh
ran=$root/ran-58b6332c3c9a661d-$(uname -n)
lock=$root/lock-c8bdc7c2f01f204a
say() { echo "ft setup: $*" >&2; }
fail() { say "$*"; exit 1; }
keep() { printf '%s\n' "$*" >>"$env_file.part"; }
in_quotes() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

is_installed() { # NAME or NAME=VERSION
  want=installed
  case $1 in *=*) want="installed ${1#*=}" ;; esac
  have=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "${1%%=*}" 2>/dev/null) || return 1
  case "$have " in "$want "*) return 0 ;; esac
  return 1
}
missing_of() {
  missing=
  for name in "$@"; do is_installed "$name" || missing="$missing $name"; done
}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
can_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}
install_missing() {
  say "apt-get install$missing"
  as_root apt-get -o DPkg::Lock::Timeout=600 -qq update
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 -qq install -y --no-install-recommends $missing >&2
}
fits() { "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$python_version" 2>/dev/null; }
make_venv() {
  for candidate in ${FT_PYTHON:-"python$python_version" python3 python}; do
    if fits "$candidate"; then "$candidate" -m venv "$venv"; return; fi
  done
  if [ -z "${FT_PYTHON:-}" ] && command -v uv >/dev/null; then
    uv venv --quiet --seed --python "$python_version" "$venv"
    return
  fi
  fail "no Python $python_version here${FT_PYTHON:+: FT_PYTHON=$FT_PYTHON is another one}." \
    "Install it with its venv module, or uv, or say where it is: FT_PYTHON=/path/to/python$python_version"
}
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"; }
missing_of gcc
if [ -n "$missing" ]; then
  if can_install; then install_missing
  else say "not installed, and there is neither root nor sudo to do it:$missing. Going on without."; fi
fi

missing_of ffmpeg
if [ -n "$missing" ]; then
  can_install || fail "cloud.image.apt asks for$missing. Installing them needs apt-get, and root or sudo without a" \
    "password: ask who looks after this machine, or take them out."
  install_missing
fi
is_there() { [ -f "$env_file" ] && [ -f "$venv/.finished" ] && [ -d "$source" ] && [ -f "$ran" ]; }
if is_there; then say "$env_file is there"; exit 0; fi

command -v flock >/dev/null || fail "flock is missing: install util-linux"
exec 9>"$lock"
flock -n 9 || { say "another setup is at work here; waiting for it"; flock 9; }
if is_there; then say "$env_file is there"; exit 0; fi
if ! [ -f "$venv/.finished" ]; then
  rm -rf "$venv" # Of one that was killed.
  make_venv
  install mini-torch==1.0
  "$venv/bin/python" -c 'import torch; assert torch.version.cuda, torch.__version__'
  install mini-torch==1.0 mini-trl==2.0
  install mini-torch==1.0 'scipy>=1.15'
  : >"$venv/.finished"
fi
if ! [ -d "$source" ]; then
  [ -f "$source_tar" ] || fail "$source_tar: the source bundle is not there; FT_SOURCE_TAR says where it is"
  [ "$(sha256sum <"$source_tar")" = "$source_sha256  -" ] || fail "$source_tar: not the bundle of this image"
  rm -rf "$source.part"
  mkdir "$source.part"
  tar -xf "$source_tar" -C "$source.part"
  mv "$source.part" "$source"
fi
: >"$env_file.part"
keep "export VIRTUAL_ENV=$(in_quotes "$venv")"
keep 'export PATH="$VIRTUAL_ENV/bin:$PATH"'
. "$env_file.part"
keep 'export A="1"'
. "$env_file.part"
if ! [ -f "$ran" ]; then (cd / && exec sh -c 'make -C /opt/tool') 9>&-; fi
keep "export PYTHONPATH=$(in_quotes "$source")"
keep 'export Q='"'"'it'"'"'"'"'"'"'"'"'s'"'"''
: >"$ran"
mv "$env_file.part" "$env_file"
say "$env_file is ready"
)
