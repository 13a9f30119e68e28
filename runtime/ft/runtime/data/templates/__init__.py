"""Chat templates by name, and which one a plan means."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ft.recipes.plan import DataPlan, DatasetPlan
from ft.recipes.runstore import INPUTS
from ft.recipes.schema.dataset import FALLBACK, NAMED_TEMPLATES
from ft.runtime.data.row import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOCK: Final = "strftime_now"
"""What a template calls that writes the day."""

SAME: Final = {"aya": "cohere", "command_r": "cohere"}
"""Name -> the one whose text it has; every other name is a file."""


def text(name: str) -> str:
    """The template of that name, one of `NAMED_TEMPLATES`."""
    assert name in NAMED_TEMPLATES, name
    file = resources.files(__name__) / f"{SAME.get(name, name)}.jinja"
    return file.read_text(encoding="utf-8")


def template_of(
    spec: DataPlan | DatasetPlan,
    data: DataPlan,
    run_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> str | None:
    """The template that a data set, or the plan as a whole, means; None is the tokenizer's own.

    Raises: DataError if it cannot be read.
    """
    name = spec.chat_template
    if name == "tokenizer_default":
        return None
    if name == "jinja":
        return _given(spec.chat_template_jinja or "", run_folder)
    if name.startswith(FALLBACK):
        return None if tokenizer.chat_template else text(name.removeprefix(FALLBACK))
    if name == "chatml" and data.default_system_message is not None:
        return _with_system(text(name), data.default_system_message)
    return text(name)


def _given(template: str, run_folder: Path) -> str:
    if not template.startswith(f"{INPUTS}/"):
        return template
    try:
        return (run_folder / template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(template, None, "", f"the chat template cannot be read: {error}") from error


def _with_system(template: str, message: str) -> str:
    """ChatML that begins with a system message where a conversation has none."""
    quoted = json.dumps(message, ensure_ascii=False)
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n' + {quoted} + '<|im_end|>\\n' }}}}{{% endif %}}{template}"
    )
