"""The house rules: what the tools cannot see, and proof that they see the rest."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from ft.recipes.schema import SECTION_OF, SECTIONS

ROOMS = ("recipes", "images", "launcher", "runtime")
MAX_FUNCTION_LINES = 80

BROAD_EXCEPTS_ALLOWED = (
    "launcher/ft/launcher/backends/",
    "launcher/ft/launcher/machine/",
    "runtime/ft/runtime/agent.py",
    "runtime/ft/runtime/worker.py",
    "runtime/ft/runtime/data/rows.py",
    "recipes/ft/recipes/plugins.py",
)
"""A process edge: whatever it was must become a state or an exit code. In rows: it must name the row.
In plugins: whatever a stranger's module does when it is imported is a problem of the recipe that lists it."""

ENVIRONMENT_READERS = {
    "launcher/ft/launcher/backends/modal_.py": "the secrets that a recipe names",
    "launcher/ft/launcher/backends/modal_host.py": "which container this is",
    "launcher/ft/launcher/backends/sky.py": "names of secrets when it prepares, their values when it sends",
    "launcher/ft/launcher/backends/sky_remote.py": "SkyPilot's variables: which node this is",
    "launcher/ft/launcher/bucket.py": "where its vendor's own variables say that buckets are",
    "launcher/ft/launcher/catalog_files.py": "where SkyPilot keeps its catalogs",
    "launcher/ft/launcher/machine/training.py": "what an agent inherits",
    "launcher/ft/launcher/cli/console.py": "what the terminal can show",
    "launcher/ft/launcher/cli/doctoring.py": "what a run would inherit",
    "launcher/ft/launcher/runs.py": "where the user keeps state and data",
    "launcher/ft/launcher/facts.py": "which GPUs the user lets CUDA see, and which secrets are set",
    "recipes/ft/recipes/prepared.py": "where this user's cache is",
    "runtime/ft/runtime/data/apart.py": "hides the GPUs from the process that makes rows",
    "runtime/ft/runtime/data/pool.py": "one thread for each process that makes rows",
    "runtime/ft/runtime/node.py": "which node and rank this is",
    "runtime/ft/runtime/preflight/node.py": "which GPUs this process may see",
    "runtime/ft/runtime/preflight/run.py": "which rank this is; a process of its own",
}
"""A setting belongs into the recipe. Each file that may look at the environment, and for what."""


@pytest.fixture(scope="session")
def sources(repo: Path, tree_files: list[str]) -> dict[str, str]:
    """Every Python file of the rooms and of quickstart: path -> text."""
    return {
        name: (repo / name).read_text(encoding="utf-8")
        for name in tree_files
        if name.endswith(".py") and name.startswith((*(f"{room}/ft/" for room in ROOMS), "quick"))
    }


# ---------------------------------------------------------------------------------------- packaging


def in_package(name: str) -> bool:
    return name.startswith(tuple(f"{room}/ft/" for room in ROOMS))


def test_no_room_makes_ft_a_regular_package(repo: Path) -> None:
    # It would hide the other rooms: only a namespace package has more than one folder.
    assert [room for room in ROOMS if (repo / room / "ft/__init__.py").exists()] == []


def test_every_room_is_named_wherever_rooms_are_listed(repo: Path) -> None:
    rooms = sorted(path.parent.name for path in repo.glob("*/ft") if path.is_dir())
    assert rooms == sorted(ROOMS)
    tool = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    hatch = tool["hatch"]["build"]
    assert sorted(hatch["dev-mode-dirs"]) == rooms
    assert sorted(hatch["targets"]["wheel"]["packages"]) == [f"{room}/ft" for room in rooms]
    assert sorted(tool["mypy"]["mypy_path"].split(":")) == rooms
    assert sorted(tool["ruff"]["src"]) == rooms
    assert sorted(tool["mypy"]["packages"]) == [f"ft.{room}" for room in rooms]
    assert sorted(tool["importlinter"]["root_packages"]) == [f"ft.{room}" for room in rooms]
    assert [room for room in rooms if not (repo / room / "ft" / room / "py.typed").is_file()] == []


def test_ignored_folders_are_anchored(repo: Path) -> None:
    # `data/` would also drop runtime/ft/runtime/data from git and from the wheel.
    lines = (repo / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    harmless = {"__pycache__/", "*.egg-info/"}
    assert [p for p in patterns if not p.startswith("/") and p not in harmless] == []


@pytest.fixture(scope="session")
def built(
    repo: Path, tree_files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(sdist, wheel made from that sdist) of the tree as a commit would hold it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tree_files:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repo / name, target, follow_symlinks=False)
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_the_tracked_files_of_the_package(
    built: tuple[Path, Path], tree_files: list[str]
) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    packaged = sorted(name for name in names if ".dist-info/" not in name)
    assert packaged == sorted(
        name.split("/", maxsplit=1)[1] for name in tree_files if in_package(name)
    )
    assert "ft/recipes/py.typed" in packaged
    assert any(re.fullmatch(r"ft/recipes/gallery/[^/]+/[^/]+\.yml", name) for name in packaged)
    assert any(
        name.startswith("ft/recipes/gallery/") and name.endswith(".jsonl") for name in packaged
    )


def test_the_sdist_holds_the_gallery_once(built: tuple[Path, Path], tree_files: list[str]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = [name.split("/", maxsplit=1)[1] for name in sdist.getnames() if "/" in name]
    assert sorted(name for name in names if in_package(name)) == sorted(
        filter(in_package, tree_files)
    )
    assert [name for name in names if name.startswith("recipes/gallery")] == []


def test_the_distribution_has_our_name_and_light_dependencies(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        headers = Parser().parsestr(wheel.read(metadata).decode())
        [scripts] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
        assert wheel.read(scripts).decode() == "[console_scripts]\nft = ft.launcher.cli.app:main\n"
    # `ft` on the package index belongs to a stranger (decision 14).
    assert headers["Name"] == "ft-launcher"
    assert headers["License-Expression"] == "Apache-2.0"
    requires = headers.get_all("Requires-Dist")
    core = sorted(re.split(r"[<>=]", line)[0] for line in requires if "extra ==" not in line)
    assert core == ["pathspec", "pydantic", "pyyaml", "rich", "typer"]
    assert sorted(headers.get_all("Provides-Extra")) == ["bucket", "dev", "modal", "sky", "train"]


@pytest.mark.slow
def test_the_wheel_alone_checks_every_gallery_recipe(
    built: tuple[Path, Path], repo: Path, tmp_path: Path
) -> None:
    """A clean environment without extras, away from the checkout, with recipes copied out of it."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*command: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, ft = tmp_path / "venv/bin/python", tmp_path / "venv/bin/ft"
    run(python, "-m", "pip", "install", "--quiet", "-c", repo / "constraints.txt", built[1])
    installed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert re.findall(r"^(torch|modal|skypilot|transformers)==", installed, re.MULTILINE) == []

    assert "Usage: ft" in run(ft, "--help")
    listed = run(ft, "recipes", "ls")
    recipes = sorted(repo.glob("recipes/ft/recipes/gallery/*/*.yml"))
    assert recipes
    for recipe in recipes:
        assert recipe.stem in listed
        folder = tmp_path / "copied" / recipe.parent.name
        shutil.copytree(recipe.parent, folder, dirs_exist_ok=True)
        run(ft, "check", recipe.name, cwd=folder)


# --------------------------------------------------------------------------------- the `ft` command

HEAVY = ("torch", "transformers", "modal", "sky", "pydantic", "datasets", "huggingface_hub")

HELP = f"""
import sys
from ft.launcher.cli.app import main
sys.argv = ["ft", "--help"]
try:
    main()
except SystemExit as end:
    code = end.code
print(code or 0, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert "Usage: ft" in done.stdout, done.stderr
    assert done.stderr == "0 []\n"


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ft.launcher.cli.app", "--help"],
        [str(Path(sys.executable).with_name("ft")), "--help"],
    ],
    ids=["module", "script"],
)
def test_both_ways_to_start_ft_show_the_help(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: ft" in done.stdout


def test_the_agent_imports_nothing_heavy() -> None:
    code = f"import sys, ft.runtime.agent; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # pydantic reads the plan.
    assert done.stdout in {"[]\n", "['pydantic']\n"}


# -------------------------------------------------------------------------------------------- style


def test_no_file_for_things_that_belong_nowhere(tree_files: list[str]) -> None:
    banned = re.compile(r"(^|/)(utils?|helpers?|common|misc)\.py$|(^|/)(core|utils)/")
    assert [name for name in tree_files if banned.search(name)] == []


def test_every_recipe_key_lives_in_one_section() -> None:
    keys = [key for section in SECTIONS.values() for key in section.model_fields]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    assert sorted(keys) == sorted(SECTION_OF)


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_longer_than_a_screen_and_a_half(sources: dict[str, str]) -> None:
    too_long = [
        f"{name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, text in sources.items()
        for node in functions(text)
        if node.end_lineno is not None and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_broad_excepts_only_at_process_edges(sources: dict[str, str]) -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, text in sources.items()
        if not name.startswith(BROAD_EXCEPTS_ALLOWED)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
    ]
    assert found == []


def is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"})
        for name in names
    )


def test_every_type_ignore_has_a_code_and_a_reason(sources: dict[str, str]) -> None:
    good = re.compile(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\]  # \S")
    bad = [
        f"{name}:{number}"
        for name, text in sources.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if "# type: ignore" in line and not good.search(line)
    ]
    assert bad == []


def test_the_environment_is_read_where_it_is_known_to_be(sources: dict[str, str]) -> None:
    readers = {
        name
        for name, text in sources.items()
        if in_package(name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("os", "environ"), ("os", "getenv")}
    }
    assert readers == set(ENVIRONMENT_READERS)


# ----------------------------------------------------------- the contracts bite: planted violations


@pytest.fixture(scope="session")
def sketch(repo: Path, tree_files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rooms to plant violations in."""
    folder = tmp_path_factory.mktemp("sketch")
    for name in tree_files:
        if name == "pyproject.toml" or (in_package(name) and name.endswith(".py")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repo / name, target)
    return folder


def lint_imports(folder: Path) -> tuple[int, str]:
    """Exit code and output of import-linter on the copy."""
    # PYTHONPATH comes before what is installed.
    path = os.pathsep.join(str(folder / room) for room in ROOMS)
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def broken(output: str) -> set[str]:
    return set(re.findall(r"^(.+?) BROKEN", output, re.MULTILINE))


ROOMS_CONTRACT = "launcher and runtime over images over recipes; launcher and runtime never meet"
LIGHT = (
    "recipes, images, launcher and the agent never import torch, not even through another module"
)
RUNTIME = "runtime knows no image, no vendor and no command line"
MODAL, SKY = "modal is imported by its backend only", "sky is imported by its backend only"
FORMATS, METHODS = "formats do not know each other", "methods do not know each other"
ADAPTERS = "adapters do not know each other"
LAUNCHER, BACKENDS = "floors of the launcher", "floors of the backends"
RUNTIME_FLOORS, CYCLES = "floors of the runtime", "no cycles between siblings"

VIOLATIONS: dict[str, tuple[dict[str, str], set[str]]] = {
    "launcher -> runtime": (
        {"launcher/ft/launcher/__init__.py": "import ft.runtime"},
        {ROOMS_CONTRACT},
    ),
    "recipes -> images": ({"recipes/ft/recipes/__init__.py": "import ft.images"}, {ROOMS_CONTRACT}),
    "runtime -> typer": ({"runtime/ft/runtime/__init__.py": "import typer"}, {RUNTIME}),
    "torch inside a function": (
        {"images/ft/images/spec.py": "def f():\n    import torch"},
        {LIGHT},
    ),
    "agent -> node -> torch": ({"runtime/ft/runtime/node.py": "import torch"}, {LIGHT}),
    "modal in dispatch": (
        {"launcher/ft/launcher/dispatch.py": "def f():\n    import modal"},
        {MODAL},
    ),
    "sky in dispatch": ({"launcher/ft/launcher/dispatch.py": "import sky"}, {SKY}),
    "vendors at home": (
        {
            "launcher/ft/launcher/backends/modal_.py": "import modal",
            "launcher/ft/launcher/backends/sky_talk.py": "import sky",
        },
        set(),
    ),
    "format -> format": (
        {"runtime/ft/runtime/data/formats/alpaca.py": "import ft.runtime.data.formats.completion"},
        {FORMATS},
    ),
    "method -> method": (
        {
            "runtime/ft/runtime/methods/planted_a.py": "import ft.runtime.methods.planted_b",
            "runtime/ft/runtime/methods/planted_b.py": "",
        },
        {METHODS},
    ),
    "adapter -> adapter": (
        {
            "runtime/ft/runtime/adapters/planted_a.py": "import ft.runtime.adapters.planted_b",
            "runtime/ft/runtime/adapters/planted_b.py": "",
        },
        {ADAPTERS},
    ),
    "launcher file without a floor": ({"launcher/ft/launcher/attic.py": ""}, {LAUNCHER}),
    "backend without a floor": ({"launcher/ft/launcher/backends/attic.py": ""}, {BACKENDS}),
    "runtime file without a floor": ({"runtime/ft/runtime/attic.py": ""}, {RUNTIME_FLOORS}),
    "backend -> backend": (
        {
            "launcher/ft/launcher/backends/modal_.py": "import ft.launcher.backends.local",
        },
        {LAUNCHER, BACKENDS},
    ),
    "errors -> load -> errors": (
        {"recipes/ft/recipes/errors.py": "import ft.recipes.load"},
        {CYCLES},
    ),
    "agent -> worker": (
        {"runtime/ft/runtime/agent.py": "import ft.runtime.worker"},
        {LIGHT, RUNTIME_FLOORS},
    ),
    "only for the type checker": (
        {
            "launcher/ft/launcher/__init__.py": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"
            )
        },
        set(),
    ),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(case: str, sketch: Path) -> None:
    files, expected = VIOLATIONS[case]
    before = {
        name: (sketch / name).read_text() if (sketch / name).exists() else None for name in files
    }
    try:
        for name, text in files.items():
            (sketch / name).write_text(f"{before[name] or ''}\n{text}\n")
        code, output = lint_imports(sketch)
    finally:
        for name, content in before.items():
            if content is None:
                (sketch / name).unlink()
            else:
                (sketch / name).write_text(content)
    assert broken(output) == expected, output
    assert code == (1 if expected else 0), output
