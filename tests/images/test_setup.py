"""The setup script really run: venvs, wheels and shells, and nothing from the network."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from ft.images.setup import activation, setup_script
from ft.images.spec import ImageSpec
from ft.recipes.errors import PlanError

PYTHON = "{}.{}".format(*sys.version_info)
SOURCE = "0123456789abcdef" * 4
BLANK = ImageSpec(
    device="cpu", base_image="python:3.11", python=PYTHON, lock="tiny", torch="mini-torch==1.0",
    requirements=("mini-trl==2.0",), source_sha256=SOURCE,
)  # fmt: skip


def wheel(folder: Path, name: str, version: str) -> None:
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}.py", f"__version__ = {version!r}\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def bundle(path: Path, text: str) -> str:
    """A source bundle with one module; its sha256."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("source_module.py")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
    return sha256(path.read_bytes()).hexdigest()


@dataclass
class Machine:
    """A home with a blank in its name, and pip that knows two wheels."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "the home" / "environments"

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "FT_"))}
        return kept | {
            "FT_SETUP_ROOT": str(self.root), "FT_PYTHON": sys.executable, "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder), "PIP_CONFIG_FILE": os.devnull,
        }  # fmt: skip

    def start(self, spec: ImageSpec, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", setup_script(spec)],
            cwd=self.folder, env=self.env | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def said(self, spec: ImageSpec, code: int = 0, **env: str) -> list[str]:
        """What the script says of itself."""
        process = self.start(spec, **env)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return [line for line in err.splitlines() if line.startswith("ft setup:")]

    def run(self, spec: ImageSpec, command: str) -> str:
        """The output of a run's command, with the variables that the script has left."""
        done = subprocess.run(
            ["sh", "-euc", f"{activation(spec)}\n{command}"],
            env=self.env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    wheel(tmp_path, "mini-torch", "1.0")
    wheel(tmp_path, "mini-trl", "2.0")
    return Machine(tmp_path)


@pytest.mark.slow
def test_the_second_time_it_returns_at_once_and_a_new_source_installs_nothing(
    machine: Machine,
) -> None:
    old = replace(
        BLANK,
        commands=('ENV GREETING="it\'s $HOME"', f"RUN echo $GREETING >>'{machine.folder}/ran'"),
        env=(("PYTHONPATH", "/opt/ft-source"), ("QUOTED", "a \"b\" 'c' $d `e` \\n")),
        source_sha256=bundle(machine.folder / "ft-source.tar", "word = 'old'\n"),
    )
    venv = machine.root / f"python-{old.environment_hash[:16]}"
    (venv / "of one that was killed").mkdir(parents=True)
    env_file = machine.root / f"env-{old.content_hash[:16]}.sh"
    assert machine.said(old) == [f"ft setup: {env_file} is ready"]
    assert not (venv / "of one that was killed").exists()
    assert machine.said(old) == [f"ft setup: {env_file} is there"]
    show = "import mini_torch as a, mini_trl as b, source_module as c; print(a.__version__, b.__version__, c.word)"
    assert machine.run(old, f'python -c "{show}"') == "1.0 2.0 old\n"
    assert machine.run(old, 'echo "$GREETING|$VIRTUAL_ENV"') == f"it's {Path.home()}|{venv}\n"
    assert machine.run(old, 'printf %s "$QUOTED"') == "a \"b\" 'c' $d `e` \\n"
    assert (machine.folder / "ran").read_text() == f"it's {Path.home()}\n"

    new = replace(old, source_sha256=bundle(machine.folder / "new.tar", "word = 'new'\n"))
    before = venv.stat().st_ino
    assert machine.said(new, FT_SOURCE_TAR="new.tar", PIP_FIND_LINKS="/nowhere")[-1].endswith(
        " is ready"
    )
    assert venv.stat().st_ino == before
    assert machine.run(new, f'python -c "{show}"') == "1.0 2.0 new\n"
    assert machine.run(old, f'python -c "{show}"') == "1.0 2.0 old\n"


@pytest.mark.slow
def test_a_lock_takes_what_has_its_hash_and_nothing_else(machine: Machine) -> None:
    [file] = machine.folder.glob("mini_trl-*.whl")
    digest = bundle(machine.folder / "ft-source.tar", "")
    good = f"mini-trl==2.0 --hash=sha256:{sha256(file.read_bytes()).hexdigest()}"
    spec = replace(BLANK, locked=(good,), source_sha256=digest)
    assert machine.said(spec)[-1].endswith(" is ready")
    assert (
        machine.run(spec, "python -c 'import mini_torch, mini_trl; print(mini_trl.__version__)'")
        == "2.0\n"
    )
    other = replace(spec, locked=(f"mini-trl==2.0 --hash=sha256:{SOURCE}",))
    process = machine.start(other)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in err


@pytest.mark.slow
def test_two_at_once_do_the_work_once(machine: Machine) -> None:
    spec = replace(
        BLANK,
        commands=(f"RUN echo once >>'{machine.folder}/ran'",),
        source_sha256=bundle(machine.folder / "ft-source.tar", ""),
    )
    both = [machine.start(spec), machine.start(spec)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert (
        sum(out.count("Successfully installed") for out, _ in said) == 2
    )  # torch, then the others
    assert sorted(err.splitlines()[-1].rsplit(" ", 1)[1] for _, err in said) == ["ready", "there"]
    assert sum("waiting for it" in err for _, err in said) == 1
    assert (machine.folder / "ran").read_text() == "once\n"
    assert not [name for name in machine.names() if name.endswith(".part")]


@pytest.mark.slow
def test_what_was_not_finished_is_done_again(machine: Machine) -> None:
    digest = bundle(machine.folder / "ft-source.tar", "")
    spec = replace(BLANK, commands=("RUN test -e flag",), source_sha256=digest)
    machine.folder.joinpath("other.tar").write_bytes(b"x")
    assert machine.said(spec, 1, FT_SOURCE_TAR="other.tar") == [
        "ft setup: other.tar: not the bundle of this image"
    ]
    assert machine.said(spec, 1) == []  # The command has failed: `test -e flag` in /
    spec = replace(spec, commands=("RUN true",))
    assert machine.said(spec)[-1].endswith(" is ready")


def only(folder: Path, *programs: str) -> str:
    """A PATH with these programs and no other."""
    folder.mkdir()
    for name in programs:
        found = subprocess.run(
            ["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True
        )
        (folder / name).symlink_to(found.stdout.strip())
    return str(folder)


def test_packages_that_cannot_be_installed_are_named(machine: Machine) -> None:
    path = only(machine.folder / "bin", "sh", "mkdir", "uname")
    ours = replace(BLANK, apt=("gcc",))
    assert machine.said(ours, 1, PATH=path) == [
        "ft setup: not installed, and there is neither root nor sudo to do it: gcc. Going on without.",
        "ft setup: flock is missing: install util-linux",
    ]
    theirs = replace(BLANK, more_apt=("ffmpeg", "no-such-package=1"))
    assert machine.said(theirs, 1, PATH=path) == [
        "ft setup: cloud.image.apt asks for ffmpeg no-such-package=1. Installing them needs apt-get, and root or sudo"
        " without a password: ask who looks after this machine, or take them out."
    ]


def test_a_python_of_another_version_is_not_used(machine: Machine) -> None:
    spec = replace(BLANK, python="3.99")
    assert machine.said(spec, 1) == [
        f"ft setup: no Python 3.99 here: FT_PYTHON={sys.executable} is another one. Install it with its venv module,"
        " or uv, or say where it is: FT_PYTHON=/path/to/python3.99"
    ]


def test_the_script_is_the_golden_one(golden: Callable[[str, str], None]) -> None:
    spec = replace(
        BLANK, device="cuda", python="3.11", apt=("gcc",), more_apt=("ffmpeg",), more_pip=("scipy>=1.15",),
        commands=("ENV A=1", "RUN make -C /opt/tool"), env=(("PYTHONPATH", "/opt/ft-source"), ("Q", "it's")),
    )  # fmt: skip
    golden("setup.sh", setup_script(spec))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ENV A=1 B=two", {"A": "1", "B": "two"}),
        ('ENV A="x y" B=a\\ b C=\'$HERE "x"\'', {"A": "x y", "B": "a b", "C": '$HERE "x"'}),
        ("ENV A=$HERE/${HERE}:$GONE", {"A": "here/here:"}),
        ("ENV A=$(id)`id`$", {"A": "$(id)`id`$"}),
        ('ENV A="\\"\\$HERE\\n\\\\"', {"A": '"$HERE\\n\\'}),
        ("ENV A x  y", {"A": "x  y"}),
        ("ENV A=", {"A": ""}),
        ("ENV A=b=c", {"A": "b=c"}),
    ],
)
def test_env_means_what_it_means_in_a_dockerfile(line: str, expected: dict[str, str]) -> None:
    from ft.images.commands import Export, steps

    found = steps([line])
    assert all(isinstance(step, Export) for step in found)
    script = "\n".join(step.line for step in found if isinstance(step, Export))
    done = subprocess.run(
        ["sh", "-euc", f"{script}\nenv -0"], env={"HERE": "here", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    values = dict(item.split("=", 1) for item in done.stdout.split("\0") if item)
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ARG X=1", "ARG is for the build of an image, and here is none"),
        ("WORKDIR /x", "WORKDIR is for the build of an image, and here is none"),
        ('SHELL ["bash"]', "SHELL is for the build of an image, and here is none"),
        ("RUN --mount=type=cache,target=/x make", "options of RUN are for the build of an image"),
        ("RUN [1]", "expected a list of texts"),
        ("ENV 1=x", "'1' is no name of a variable"),
        ("ENV A=${B:-x}", "${B:-x}: expected the name of a variable alone"),
        ('ENV A="x', 'a quote " is open'),
        ("ENV A=1 B", "expected NAME=VALUE, got 'B'"),
    ],
)
def test_what_only_a_build_can_obey_is_refused_before_anything_is_sent(line: str, why: str) -> None:
    with pytest.raises(PlanError) as caught:
        setup_script(replace(BLANK, commands=(line,)))
    assert caught.value.message.startswith(f"cloud.image.commands: {line!r}: {why}")
    assert caught.value.hint == "without a container there are `RUN COMMAND` and `ENV NAME=VALUE`"


def test_a_list_of_words_is_run_as_it_is() -> None:
    from ft.images.commands import Run, steps

    assert steps(['RUN ["echo", "a b", "$C"]', "RUN [ -d / ]"]) == (
        Run("echo 'a b' '$C'"),
        Run("[ -d / ]"),
    )
