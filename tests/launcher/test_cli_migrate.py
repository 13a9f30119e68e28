"""`ft migrate`: what it prints, what it writes, and with which code it ends."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ft.launcher.cli import gallery, migrating
from ft.recipes.errors import UsageError

# As `cli.app` does: the one place where errors are caught.
PROGRAM = """
import sys
import typer
from ft.launcher.cli import console, migrating
from ft.recipes.errors import FtError

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
app.callback()(lambda: None)
app.command()(migrating.migrate)
try:
    app(prog_name="ft")
except FtError as error:
    console.show_error(error)
    sys.exit(error.exit_code)
"""
OLD = "# ours\nbase_model: x\nflash_attention: true  # fast\nsdp_attention: false\n"
NEW = "# ours\nbase_model: x\nattn_implementation: flash_attention_2  # fast\n"
LISTED = """\
r.yml:3: flash_attention: true -> attn_implementation: flash_attention_2
r.yml:4: sdp_attention: false goes away
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str


@dataclass(frozen=True)
class Migrate:
    """Runs `ft migrate` in a folder of its own."""

    folder: Path

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            input=stdin,
            check=False,
            capture_output=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-c", PROGRAM, "migrate", *arguments]

    @property
    def env(self) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "LC_ALL"}
        }
        return kept | {"COLUMNS": "80", "TERM": "xterm-256color"}

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def migrate(tmp_path: Path) -> Migrate:
    (tmp_path / "r.yml").write_text(OLD)
    return Migrate(tmp_path)


def text(migrate: Migrate, name: str = "r.yml") -> str:
    return (migrate.folder / name).read_bytes().decode()


def test_without_an_option_the_difference_is_shown_and_nothing_written(migrate: Migrate) -> None:
    done = migrate("r.yml")
    assert done.code == 0
    assert (
        done.out.decode()
        == """\
--- r.yml
+++ r.yml
@@ -1,4 +1,3 @@
 # ours
 base_model: x
-flash_attention: true  # fast
-sdp_attention: false
+attn_implementation: flash_attention_2  # fast
"""
    )
    assert done.err == (
        "r.yml: 2 older spellings would be rewritten\nhint: ft migrate r.yml --write\n"
    )
    assert (text(migrate), migrate.files()) == (OLD, ["r.yml"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["sdp_attention: false", "a: 1", "a: 1\n"])
def test_patch_takes_the_difference(migrate: Migrate, end: str, last: str) -> None:
    old = (OLD + last.replace("sdp", "eager")).replace("\n", end).encode()
    (migrate.folder / "r.yml").write_bytes(old)
    command = ["patch", "--binary", "r.yml"]
    difference = migrate("r.yml").out
    try:
        subprocess.run(command, cwd=migrate.folder, input=difference, check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("the program `patch` is not installed")
    patched = (migrate.folder / "r.yml").read_bytes()
    assert patched == migrate("-", stdin=old).out


def test_write_changes_the_file_and_lists_what(migrate: Migrate) -> None:
    done = migrate("-w", "r.yml")
    assert (done.code, done.out.decode()) == (0, LISTED)
    assert done.err == "r.yml: 2 older spellings rewritten\n"
    assert (text(migrate), migrate.files()) == (NEW, ["r.yml"])


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_write_keeps_the_mode_and_follows_a_link(migrate: Migrate, mode: int) -> None:
    (migrate.folder / "r.yml").chmod(mode)
    (migrate.folder / "link.yml").symlink_to("r.yml")
    assert migrate("link.yml", "--write").code == 0
    assert (migrate.folder / "link.yml").is_symlink()
    assert (migrate.folder / "r.yml").stat().st_mode & 0o7777 == mode
    assert (text(migrate), migrate.files()) == (NEW, ["link.yml", "r.yml"])


def test_write_keeps_a_byte_order_mark_and_line_ends(migrate: Migrate) -> None:
    (migrate.folder / "r.yml").write_bytes(b"\xef\xbb\xbf" + OLD.replace("\n", "\r\n").encode())
    assert migrate("r.yml", "--write").code == 0
    assert text(migrate) == "\ufeff" + NEW.replace("\n", "\r\n")


def test_check_lists_and_fails_if_something_would_change(migrate: Migrate) -> None:
    done = migrate("r.yml", "--check")
    assert (done.code, done.out.decode()) == (1, LISTED)
    assert text(migrate) == OLD


@pytest.mark.parametrize("options", [(), ("--check",), ("--write",)])
def test_nothing_to_do_says_so_and_touches_nothing(
    migrate: Migrate, options: tuple[str, ...]
) -> None:
    path = migrate.folder / "r.yml"
    path.write_text(NEW)
    before = path.stat()
    done = migrate("r.yml", *options)
    assert (done.code, done.out) == (0, b"")
    assert done.err == "r.yml: nothing to do, this is today's spelling\n"
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("options", [(), ("--check",), ("--write",)])
def test_words_that_were_taken_away_remain_and_are_named(
    migrate: Migrate, options: tuple[str, ...]
) -> None:
    gone = (
        "base_model: x\nrope_scaling: {type: linear}\nmax_packed_sequence_len: 1\n"
        "datasets: [{path: x, type: sharegpt}]\n"
    )
    (migrate.folder / "r.yml").write_text(gone)
    said = (
        "r.yml:2: rope_scaling: was removed: write it below `model_config`.\n"
        "r.yml:3: max_packed_sequence_len: was removed: write `sample_packing: true` and `sequence_len`.\n"
        "r.yml:4: datasets.0.type: sharegpt is gone: write `type: chat_template`, "
        "`field_messages: conversations` and `message_property_mappings: {role: from, content: value}`\n"
        "r.yml: 3 problems that ft migrate cannot mend; after that, ft check r.yml\n"
    )
    done = migrate("r.yml", *options)
    assert (done.code, done.out, done.err) == (0, b"", f"{said}r.yml: nothing to rewrite\n")
    # What can be rewritten is, beside them; the lines are those of the new text.
    (migrate.folder / "r.yml").write_text(f"{gone}flash_attention: true\n")
    mixed = migrate("r.yml", "--write")
    assert (mixed.code, mixed.err) == (0, f"{said}r.yml: 1 older spelling rewritten\n")


def test_standard_input_goes_to_standard_output(migrate: Migrate) -> None:
    old, new = (("\ufeff# é\n" + part).replace("\n", "\r\n").encode() for part in (OLD, NEW))
    done = migrate("-", stdin=old)
    assert (done.code, done.out) == (0, new)
    assert done.err == "<stdin>: 2 older spellings rewritten\n"
    again = migrate("-", stdin=new)
    assert (again.code, again.out) == (0, new)
    assert migrate("-", "--check", stdin=old).code == 1
    assert migrate("-", "--check", stdin=new).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["https://x.test/r.yml"], 2, "is an address; ft migrate rewrites files", "save it first"),
        (["llama-3/lora-1b"], 8, "does not exist", "ft recipes ls"),
        (["none.yml"], 8, "none.yml does not exist", "ft recipes ls"),
        (["-", "--write"], 2, "standard input cannot be written", "ft migrate - <old.yml >new.yml"),
        (["r.yml", "--write", "--check"], 2, "expected one of the two", ""),
    ],
)
def test_what_cannot_be_migrated(
    migrate: Migrate, arguments: list[str], code: int, message: str, hint: str
) -> None:
    done = migrate(*arguments)
    assert (done.code, done.out) == (code, b"")
    assert message in done.err
    assert hint in done.err
    assert text(migrate) == OLD


def test_a_recipe_of_the_gallery_is_to_be_copied_first(migrate: Migrate) -> None:
    name = gallery.entries()[0].name
    done = migrate(name, "--write")
    assert (done.code, done.out) == (2, b"")
    assert f"error: {name} is a recipe of the gallery" in done.err
    assert f"hint: ft recipes copy {name}" in done.err


@pytest.mark.parametrize(
    ("recipe", "code", "message"),
    [
        ("dpo_beta: 1\nrl_beta: 2\n", 2, "r.yml:1: dpo_beta: is the older spelling of `rl_beta`"),
        ("dpo_beta: [\n", 2, "r.yml:2: not YAML"),
        ("flash_attention: # why\n  false\n", 1, "error: r.yml:1: cannot be rewritten safely: a"),
    ],
)
@pytest.mark.parametrize("option", ["--write", "--check"])
def test_a_refused_recipe_stays_as_it_is(
    migrate: Migrate, recipe: str, code: int, message: str, option: str
) -> None:
    (migrate.folder / "r.yml").write_text(recipe)
    done = migrate("r.yml", option)
    assert (done.code, done.out) == (code, b"")
    assert message in done.err
    assert (text(migrate), migrate.files()) == (recipe, ["r.yml"])


def test_a_file_that_may_not_be_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yml").write_text(OLD)
    (tmp_path / "r.yml").chmod(0o444)
    # Root may write everything, and tests may run as root.
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    with pytest.raises(UsageError, match=r"r\.yml cannot be written: Permission denied"):
        migrating.migrate(str(tmp_path / "r.yml"), write=True)
    assert (tmp_path / "r.yml").read_text() == OLD


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "r.yml").write_text(OLD)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"r\.yml cannot be written: No space left"):
        migrating.migrate(str(tmp_path / "r.yml"), write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yml"]
    assert (tmp_path / "r.yml").read_text() == OLD


def test_a_terminal_gets_colours(migrate: Migrate) -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        migrate.command("r.yml"),
        cwd=migrate.folder,
        env=migrate.env,
        check=True,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "\033[31m-sdp_attention: false\033[0m" in shown
    assert "\033[32m+attn_implementation: flash_attention_2  # fast\033[0m" in shown
    assert "\033[36m@@ -1,4 +1,3 @@\033[0m" in shown


def test_help_says_what_is_not_looked_at(migrate: Migrate) -> None:
    done = migrate("--help")
    assert done.code == 0
    assert re.search(r"extends\s+it,\s+is\s+not\s+looked\s+at", done.out.decode())
