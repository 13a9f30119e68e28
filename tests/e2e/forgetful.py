"""`python forgetful.py ROOM cloud run …` is `ft` that does not send one room of its source along."""

from __future__ import annotations

import sys
from pathlib import Path

from ft.launcher.backends import modal_app
from ft.launcher.cli import app


def main() -> None:
    forgotten, rooms = sys.argv.pop(1), modal_app._rooms

    def without() -> dict[str, Path]:
        return {name: folder for name, folder in rooms().items() if name != forgotten}

    modal_app._rooms = without
    app.main()


if __name__ == "__main__":
    main()
