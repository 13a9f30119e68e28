"""The words of a run whose copy lies in a bucket or on a shared file system: a file each, below `words/`."""

from __future__ import annotations

import json
from typing import Any, Final

from ft.launcher.copies import open_copy
from ft.launcher.machine.words import Words
from ft.launcher.medium import MediumRefusedError
from ft.launcher.mirror import WORDS

SUBMISSION_WORD: Final = "submission-"
"""With a submission's number behind it: the job that has claimed it."""
ANSWERS_WITHIN_S: Final = 5.0
"""Asked again for so long at once; whoever needs more is patient himself."""


class BucketWords(Words):
    """See `Words`. Of a run by its URI (`copies.py`)."""

    def __init__(self, uri: str) -> None:
        self._bucket = open_copy(uri, retry_s=ANSWERS_WITHIN_S)

    def _get(self, key: str) -> Any:
        try:
            return json.loads(self._bucket.read(word_name(key)))
        except FileNotFoundError:
            return None

    def _put(self, key: str, value: Any, *, once: bool) -> None:
        content = json.dumps(value).encode()
        if once:
            self._bucket.claim(word_name(key), content)
        else:
            self._bucket.write(word_name(key), content)

    def _drop(self, key: str) -> None:
        self._bucket.remove([word_name(key)])

    def _is_refused(self, error: Exception) -> bool:
        return isinstance(error, MediumRefusedError)

    def all(self) -> list[str]:
        """All keys. Raises: OSError."""
        return [key_of(file.path) for file in self._bucket.listed(WORDS)]


def next_segment(words: BucketWords) -> int:
    """The one behind all that somebody has claimed. Raises: OSError."""
    held = [key.removeprefix("holder-") for key in words.all() if key.startswith("holder-")]
    return 1 + max((int(number) for number in held), default=0)


def word_name(key: str) -> str:
    """The file that a word is."""
    return f"{WORDS}/{key}.json"


def key_of(name: str) -> str:
    """The key of a word by its file."""
    return name.removeprefix(f"{WORDS}/").removesuffix(".json")
