"""ImageSpec -> the same steps as shell lines, for a machine without containers, such as a VM or a Slurm node.

Where the script puts things, below `$FT_SETUP_ROOT`, which several machines may share:

    python-<environment>/    a venv with what pip installs; .finished is written last
    source-<source>/         the unpacked bundle
    ran-<image>-<machine>    this machine has run the recipe's commands
    env-<image>.sh           what a run sources: PATH, the image's variables, those of the recipe; written last
    lock-<environment>       held (flock) by the one that is at work
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from ft.images.commands import Export, Run, steps
from ft.images.dockerfile import HAS_CUDA, LOCKED, SOURCE_FILE, SOURCE_ROOT
from ft.images.spec import ImageSpec

ROOT: Final = "${FT_SETUP_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/ft/environments}"
"""Where environments lie, as a shell reads it."""
SHOWN_DIGITS: Final = 16
"""Of a hash in a name."""


def setup_script(spec: ImageSpec) -> str:
    """POSIX shell lines that make what `spec` describes; a function of `spec` alone.

    To be run as a file, or put into longer lines: they are a subshell, whose status is not 0 if something failed. The
    second time they return at once; two at once, on one machine or on several with one home, do the work once.
    Read from the environment: FT_SETUP_ROOT, FT_SOURCE_TAR (the bundle, `ft-source.tar` of the current folder by
    default), FT_PYTHON (a Python of the right version). pip is configured as it is on the machine.
    Raises: PlanError for a line of `cloud.image.commands` that only the build of an image can obey.
    """
    commands = steps(spec.commands)
    parts = (
        _HEAD.format(
            lock=spec.lock,
            image=spec.content_hash,
            python=spec.python,
            source_sha256=spec.source_sha256,
            source_tar=SOURCE_FILE,
            root=ROOT,
            environment=_short(spec.environment_hash),
            shown=_short(spec.content_hash),
            source=_short(spec.source_sha256),
        ),
        _FUNCTIONS,
        _packages(spec),
        _is_there(commands),
        _VENV.format(installs="\n".join(_installs(spec))),
        _SOURCE,
        *_environment(spec, commands),
    )
    return "\n".join(part.strip("\n") for part in parts if part) + "\n"


def activation(spec: ImageSpec) -> str:
    """The line with which a run begins where `setup_script(spec)` has been: it reads the variables."""
    return f'. "{ROOT}/env-{_short(spec.content_hash)}.sh"'


def _short(digest: str) -> str:
    return digest[:SHOWN_DIGITS]


_HEAD: Final = """\
#!/bin/sh
# {lock}, image {image}
# What the Dockerfile of this image does, on a machine without containers. Packages of the distribution need root or
# sudo without a password; all else is the user's own.
(
set -eu
umask 022
unset PYTHONPATH PYTHONHOME
root={root}
mkdir -p "$root"
root=$(cd "$root" && pwd)
python_version={python}
source_sha256={source_sha256}
source_tar=${{FT_SOURCE_TAR:-{source_tar}}}
venv=$root/python-{environment}
source=$root/source-{source}
env_file=$root/env-{shown}.sh
ran=$root/ran-{shown}-$(uname -n)
lock=$root/lock-{environment}
"""

_FUNCTIONS: Final = """
say() { echo "ft setup: $*" >&2; }
fail() { say "$*"; exit 1; }
keep() { printf '%s\\n' "$*" >>"$env_file.part"; }
in_quotes() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\\\\\''/g")"; }

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
  as_root env DEBIAN_FRONTEND=noninteractive \\
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
  fail "no Python $python_version here${FT_PYTHON:+: FT_PYTHON=$FT_PYTHON is another one}." \\
    "Install it with its venv module, or uv, or say where it is: FT_PYTHON=/path/to/python$python_version"
}
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"; }
"""

_OURS: Final = """
missing_of {names}
if [ -n "$missing" ]; then
  if can_install; then install_missing
  else say "not installed, and there is neither root nor sudo to do it:$missing. Going on without."; fi
fi
"""

_THEIRS: Final = """
missing_of {names}
if [ -n "$missing" ]; then
  can_install || fail "cloud.image.apt asks for$missing. Installing them needs apt-get, and root or sudo without a" \\
    "password: ask who looks after this machine, or take them out."
  install_missing
fi
"""


def _packages(spec: ImageSpec) -> str:
    """Of each machine by itself: a home may be shared, and what is installed is not."""
    parts = ((_OURS, spec.apt), (_THEIRS, spec.more_apt))
    return "".join(text.format(names=" ".join(names)) for text, names in parts if names)


def _is_there(commands: tuple[Run | Export, ...]) -> str:
    """The same question before the lock and with it."""
    ran = ' && [ -f "$ran" ]' if _runs(commands) else ""
    return f"""
is_there() {{ [ -f "$env_file" ] && [ -f "$venv/.finished" ] && [ -d "$source" ]{ran}; }}
if is_there; then say "$env_file is there"; exit 0; fi

command -v flock >/dev/null || fail "flock is missing: install util-linux"
exec 9>"$lock"
flock -n 9 || {{ say "another setup is at work here; waiting for it"; flock 9; }}
if is_there; then say "$env_file is there"; exit 0; fi
"""


def _runs(commands: tuple[Run | Export, ...]) -> bool:
    return any(isinstance(command, Run) for command in commands)


_VENV: Final = """
if ! [ -f "$venv/.finished" ]; then
  rm -rf "$venv" # Of one that was killed.
  make_venv
{installs}
  : >"$venv/.finished"
fi
"""


def _installs(spec: ImageSpec) -> Iterator[str]:
    yield f"  install {shlex.quote(spec.torch)}"
    if spec.device == "cuda":
        yield f"  \"$venv/bin/python\" -c '{HAS_CUDA}'"
    if spec.locked:
        yield "\n".join([f"  install {LOCKED} <<'FT_LOCK'", *spec.locked, "FT_LOCK"])
    elif spec.requirements:
        yield f"  install {shlex.join((spec.torch, *spec.requirements))}"
    if spec.more_pip:
        yield f"  install {shlex.join((spec.torch, *spec.more_pip))}"


_SOURCE: Final = """
if ! [ -d "$source" ]; then
  [ -f "$source_tar" ] || fail "$source_tar: the source bundle is not there; FT_SOURCE_TAR says where it is"
  [ "$(sha256sum <"$source_tar")" = "$source_sha256  -" ] || fail "$source_tar: not the bundle of this image"
  rm -rf "$source.part"
  mkdir "$source.part"
  tar -xf "$source_tar" -C "$source.part"
  mv "$source.part" "$source"
fi
"""


def _environment(spec: ImageSpec, commands: tuple[Run | Export, ...]) -> Iterator[str]:
    """The file that a run sources, line by line as the Dockerfile has them: a command sees what was set before it."""
    yield _ENV_BEGINS
    for command in commands:
        if isinstance(command, Export):
            yield f'keep {shlex.quote(command.line)}\n. "$env_file.part"'
        else:
            run = f"(cd / && exec sh -c {shlex.quote(command.command)}) 9>&-"
            yield f'if ! [ -f "$ran" ]; then {run}; fi'
    for name, value in spec.env:
        if value == SOURCE_ROOT:
            yield f'keep "export {name}=$(in_quotes "$source")"'
        else:
            yield f"keep {shlex.quote(f'export {name}={shlex.quote(value)}')}"
    yield _ENV_ENDS.format(ran=': >"$ran"\n' if _runs(commands) else "")


_ENV_BEGINS: Final = """
: >"$env_file.part"
keep "export VIRTUAL_ENV=$(in_quotes "$venv")"
keep 'export PATH="$VIRTUAL_ENV/bin:$PATH"'
. "$env_file.part"
"""

_ENV_ENDS: Final = """
{ran}mv "$env_file.part" "$env_file"
say "$env_file is ready"
)
"""
