"""What `cloud.include` names: found, without what a `.ftignore` leaves out, and with its place in the run.

An entry is relative to the current folder, else to the recipe's; where it lies from there it lies in the run's working
directory. What it names itself goes along; of a folder, or by a pattern, not what a `.ftignore` leaves out. As with
git those count that lie between the folder that the entry is relative to and the file, unless they leave out the very
thing that the entry names.
"""

from __future__ import annotations

import glob
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ft.launcher.ftignore import FTIGNORE, Ignored
from ft.recipes.digest import IGNORED_PARTS
from ft.recipes.errors import KeyPath
from ft.recipes.facts import Included, IncludedFile
from ft.recipes.secrecy import is_file_of_secrets

STAYS: Final = IGNORED_PARTS | {".venv", FTIGNORE}
"""Names that never travel."""
SHOWN: Final = 5
"""Problems of one entry that are told; the others are counted."""
MAX_DEPTH: Final = 200
"""Folders in folders: far more than people make, far less than Python can call."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One text of `cloud.include`, where it stands, and the folders in which it is looked for."""

    key: KeyPath
    text: str
    folders: tuple[Path, ...]


def find(entries: Iterable[Entry]) -> Included:
    """Every file that goes along, once, sorted by its path in the run; not hashed."""
    files: dict[str, IncludedFile] = {}
    complaints: list[tuple[KeyPath, str]] = []
    told: set[str] = set()
    for entry in entries:
        found, problems = _found(entry)
        # Entries may overlap: what is wrong there is told once.
        new = [text for text in problems if text not in told]
        told.update(new)
        complaints += [(entry.key, text) for text in new[:SHOWN]]
        if len(new) > SHOWN:
            complaints.append((entry.key, f"and {len(new) - SHOWN} more like these."))
        for file in found:
            other = files.setdefault(file.path, file)
            if other.source != file.source:
                both = f"{other.source} and {file.source}"
                text = f"{shown(file.path)} would be two files in the run: {both}. Keep one."
                complaints.append((entry.key, text))
    ordered = sorted(files.values(), key=lambda file: file.path.split("/"))
    return Included(tuple(ordered), tuple(complaints))


def shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _found(entry: Entry) -> tuple[Sequence[IncludedFile], Sequence[str]]:
    """Files of an entry, and what is wrong with it; whole sentences."""
    refused = _refused(entry.text)
    if refused:
        return (), (refused,)
    path, name = posixpath.normpath(entry.text), shown(entry.text)
    left_out = 0
    for folder in entry.folders:
        tree = Tree(folder)
        if os.path.lexists(folder / path):
            tree.take_named(path)
        elif not glob.has_magic(path) or not tree.take_matches(path):
            left_out += tree.num_left_out
            continue
        if not tree.files and not tree.complaints:
            tree.complaints.append(_nothing(name, left_out=tree.num_left_out))
        return list(tree.files.values()), tree.complaints
    where = "neither in the current folder nor beside the recipe"
    if left_out:
        where += f", but for what {FTIGNORE} leaves out"
    if glob.has_magic(path):
        return (), (f"nothing matches {name}, {where}. Mend the pattern.",)
    return (), (f"{name} does not exist, {where}. Mend the path.",)


def _refused(text: str) -> str | None:
    """Why an entry has no place in a run, if it has none."""
    if "\0" in text:
        return f"{shown(text)} is no path. Mend it."
    if text.startswith(("/", "~")):
        what = "is an absolute path"
    elif posixpath.normpath(text).split("/")[0] == "..":
        what = "leads out of the folder that it is relative to"
    else:
        return None
    return (
        f"{shown(text)} {what}, so it has no place in the run. "
        "Start `ft` in a folder that holds it, and write the path from there."
    )


def _nothing(name: str, *, left_out: int) -> str:
    if left_out:
        return f"nothing of {name} would go along: its {FTIGNORE} leaves out all. Mend that, or take the entry out."
    return f"there is no file in {name}. Put one there, or take the entry out."


@dataclass(frozen=True, slots=True)
class Node:
    """A file or folder of a tree."""

    path: str
    """From the top; that one is empty."""
    is_folder: bool
    """Also where it is a link to one."""
    ignored: Ignored
    """What counts for it; of an open folder, for what is in it."""
    around: tuple[Path, ...]
    """The folders around it, links resolved; of an open folder, with itself."""

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


class Tree:
    """What one entry gives below one folder, `top`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.files: dict[str, IncludedFile] = {}
        self.complaints: list[str] = []
        self.num_left_out = 0
        self._known: dict[str, list[Node]] = {}
        """Folder -> what is in it: a pattern with `**` looks twice."""

    def take_named(self, path: str) -> None:
        """`path` is there, and goes along but for what a `.ftignore` in it leaves out."""
        node = self._named(path)
        if node is not None:
            self._take(node, is_named=True)

    def take_matches(self, path: str) -> bool:
        """All that a pattern names, as a shell reads it: `*` is no name that begins with a dot. False if nothing."""
        parts = path.split("/")
        first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        base = "/".join(parts[:first])
        if not _is_folder(self.top / base):
            return False
        node = self._named(base or ".")
        found = list(self._matches(node, parts[first:])) if node is not None else []
        for match in found:
            self._take(match)
        return bool(found or self.complaints)

    def _matches(self, folder: Node, parts: Sequence[str]) -> Iterator[Node]:
        part, rest = parts[0], parts[1:]
        if part == "**" and rest:
            yield from self._matches(folder, rest)
        elif part == "**":
            yield folder
            return
        for child in self._children(folder):
            if part == "**":
                is_link = (self.top / child.path).is_symlink()
                if child.is_folder and not is_link and not child.name.startswith("."):
                    yield from self._matches(child, parts)
            elif _is_named(child.name, part):
                if not rest:
                    yield child
                elif child.is_folder:
                    yield from self._matches(child, rest)

    def _named(self, path: str) -> Node | None:
        """The node at a path that is written out. What would leave it out does not count. None with a complaint."""
        parts = path.split("/") if path != "." else []
        stays = next((part for part in parts if part in STAYS), None)
        if stays:
            self.complaints.append(f"{stays} never goes along. Take the entry out.")
            return None
        node = Node("", is_folder=True, ignored=Ignored(), around=())
        for part in parts:
            folder = self._opened(node)
            if folder is None:
                return None
            inner = posixpath.join(folder.path, part)
            is_folder = _is_folder(self.top / inner)
            is_left_out = folder.ignored.leaves_out(inner, is_folder=is_folder)
            ignored = Ignored() if is_left_out else folder.ignored
            node = Node(inner, is_folder, ignored, folder.around)
        return node

    def _take(self, node: Node, *, is_named: bool = False) -> None:
        if node.is_folder:
            for child in self._children(node):
                self._take(child)
        elif node.path not in self.files and self._may_go(node):
            self._take_file(node.path, is_named=is_named)

    def _children(self, node: Node) -> list[Node]:
        """What is in a folder and does not stay at home, sorted by name."""
        if node.path not in self._known:
            folder = self._opened(node)
            self._known[node.path] = list(self._listed(folder)) if folder is not None else []
        return self._known[node.path]

    def _listed(self, folder: Node) -> Iterator[Node]:
        try:
            names = sorted(found.name for found in (self.top / folder.path).iterdir())
        except OSError as error:
            self._complain(folder.path, f"cannot be read: {error.strerror}")
            return
        for name in names:
            inner = posixpath.join(folder.path, name)
            if name in STAYS:
                continue
            is_folder = _is_folder(self.top / inner)
            if folder.ignored.leaves_out(inner, is_folder=is_folder):
                self.num_left_out += 1
            else:
                yield Node(inner, is_folder, folder.ignored, folder.around)

    def _opened(self, node: Node) -> Node | None:
        """A folder with the `.ftignore` in it. None with a complaint if it cannot be gone into."""
        if not self._may_go(node):
            return None
        if len(node.around) > MAX_DEPTH:
            self._complain(node.path, f"lies more than {MAX_DEPTH} folders deep")
            return None
        real = (self.top / node.path).resolve()
        file = posixpath.join(node.path, FTIGNORE)
        try:
            content = (self.top / file).read_bytes()
        except FileNotFoundError:
            return replace(node, around=(*node.around, real))
        except OSError as error:
            self.complaints.append(f"{shown(file)} cannot be read: {error.strerror}. Mend that.")
            return None
        ignored, wrong = node.ignored.with_file(node.path, content)
        self.complaints += [f"{shown(file)}:{what}. Mend the line." for what in wrong]
        return replace(node, ignored=ignored, around=(*node.around, real))

    def _may_go(self, node: Node) -> bool:
        """Whether it has a name that can be sent, and no link leads astray on the way to it."""
        if not _is_utf8(node.path):
            self._complain(node.path, "has a name that is no UTF-8")
        elif (self.top / node.path).is_symlink():
            why = self._astray(node)
            if why:
                self._complain(node.path, why)
            return not why
        else:
            return True
        return False

    def _astray(self, node: Node) -> str:
        """What is wrong with a link; empty if it leads to a file or a folder below the top."""
        link, top = self.top / node.path, self.top.resolve()
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13.
            return "is a link to what is not there"
        if not target.is_relative_to(top):
            return f"is a link out of {top.name or top}, to {shown(str(target))}"
        if any(folder.is_relative_to(target) for folder in node.around):
            return "is a link to a folder that it lies in"
        return ""

    def _take_file(self, path: str, *, is_named: bool) -> None:
        source = self.top / path
        names = {source.name, source.resolve().name}
        if not is_named and any(map(is_file_of_secrets, names)):
            self.complaints.append(
                f"{shown(path)} looks like a file of secrets, which never travel like that: they go into "
                f"`cloud.secrets`. Write its name into {FTIGNORE}; if it holds none, name the file itself in `include`."
            )
            return
        try:
            found = source.stat()
        except OSError as error:
            self._complain(path, f"cannot be read: {error.strerror}")
            return
        if not stat.S_ISREG(found.st_mode):
            self._complain(path, "is neither a file nor a folder")
        elif not os.access(source, os.R_OK):
            self._complain(path, "cannot be read: Permission denied")
        else:
            is_executable = bool(found.st_mode & stat.S_IXUSR)
            self.files[path] = IncludedFile(path, source, found.st_size, is_executable)

    def _complain(self, path: str, what: str) -> None:
        self.complaints.append(
            f"{shown(path or '.')} {what}. Mend that, or leave it out by a line in {FTIGNORE}."
        )


def _is_folder(path: Path) -> bool:
    """Whether it is a folder or a link to one; what cannot be looked at is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_named(name: str, part: str) -> bool:
    """Whether a pattern without slashes names it."""
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
