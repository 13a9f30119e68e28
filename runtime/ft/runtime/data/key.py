"""What prepared rows are made of, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ft.recipes.digest import digest_of
from ft.recipes.plan import DatasetPlan, RunPlan
from ft.recipes.runstore import INPUTS
from ft.runtime.data.sources import from_hub
from ft.runtime.data.templates import CLOCK, template_of
from ft.runtime.data.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES: Final = ("transformers", "tokenizers", "fastokens", "jinja2", "datasets", "pyarrow")
"""Whose versions may change a row."""

LATER: Final = frozenset(
    {
        "datasets", "test_datasets", "val_set_size", "shuffle_merged_datasets", "chat_template", "chat_template_jinja",
        "sample_packing", "sample_packing_sequentially", "sample_packing_group_size", "sample_packing_bin_size",
        "eval_sample_packing", "pad_to_sequence_len",
        "dataset_prepared_path", "dataset_num_proc", "date",
    }
)  # fmt: skip
"""Fields of the DataPlan that say what happens to rows once they are made, or that are told in another way."""


def made_of(plan: RunPlan, work: Work) -> dict[str, Any]:
    """Everything that decides the rows of `work`, as JSON: bytes of sources, options, tokenizer, templates, code.

    Names of files and folders are no part of it.
    """
    contents = {entry.path: entry.sha256 for entry in plan.inputs}
    options = {
        name: value
        for name, value in plan.data.model_dump(mode="json").items()
        if name not in LATER
    }
    return {
        "sources": [_source(spec, work, contents) for spec in work.specs],
        "options": options,
        "tokenizer": _tokenizer(work.tokenizer),
        "code": _code(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def of(made: Mapping[str, Any]) -> str:
    """32 hexadecimal digits."""
    text = json.dumps(made, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _source(spec: DatasetPlan, work: Work, contents: Mapping[str, str]) -> dict[str, Any]:
    values = spec.model_dump(mode="json", exclude={"path", "chat_template", "chat_template_jinja"})
    if spec.path.startswith(f"{INPUTS}/"):
        # Of a file that is read by its suffix, the suffix.
        values["content"] = [
            _content(spec, work.run_folder, contents),
            Path(spec.path).suffix.lower(),
        ]
    else:
        # The commit that the hub's name means now; offline, the one that is in the cache.
        values["content"] = _revision(spec)
    if spec.type == "chat_template":
        template = template_of(spec, work.data, work.run_folder, work.tokenizer)
        values["template"] = work.tokenizer.chat_template if template is None else template
        if CLOCK in str(values["template"]):
            values["date"] = work.data.date.isoformat()
    return values


def _content(spec: DatasetPlan, run_folder: Path, contents: Mapping[str, str]) -> str:
    """What the plan says of its bytes; the agent has compared it with them."""
    known = contents.get(spec.path)
    return known if known is not None else digest_of(run_folder / spec.path)


def _revision(spec: DatasetPlan) -> str:
    fingerprint: str = from_hub(spec)._fingerprint
    return fingerprint


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that the tokenizer does."""
    if tokenizer.is_fast:
        state = tokenizer.backend_tokenizer.to_str()
    else:
        state = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    special = sorted(tokenizer.special_tokens_map.items())
    splits = getattr(tokenizer, "split_special_tokens", False)
    said = (type(tokenizer).__name__, state, special, splits)
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _code() -> str:
    """A hash of the code that makes rows."""
    digest = hashlib.sha256()
    folder = resources.files("ft.runtime.data")
    for file in sorted(Path(str(folder)).rglob("*")):
        if file.suffix in {".py", ".jinja"}:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
