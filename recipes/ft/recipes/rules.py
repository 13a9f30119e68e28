"""Rules over several keys. Pure: `rule(recipe, facts) -> Iterable[Problem]`. They never write a value.

A rule that needs a fact which is not known is deferred and listed as such, never guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath, Problem, Severity, sort_problems
from ft.recipes.facts import Facts
from ft.recipes.layout import SIZES, LayoutError, solve
from ft.recipes.normalize import Normalized
from ft.recipes.schema import FlatRecipe


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says, before it gets an id and a line. `keys` are the top-level keys it speaks of."""

    key: KeyPath
    message: str
    severity: Severity = Severity.ERROR
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    check: Callable[[FlatRecipe, Facts], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    """Facts without which the rule is deferred."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known to be wrong, and which rules could not be asked."""

    problems: tuple[Problem, ...]
    deferred: tuple[str, ...]

    def of(self, severity: Severity) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is severity]


def check(normalized: Normalized, facts: Facts) -> Report:
    """Problems of reading and of the rules together, sorted by line."""
    problems = list(normalized.problems)
    deferred: list[str] = []
    broken = _Broken(normalized)
    for rule in RULES:
        if any(getattr(facts, need) is None for need in rule.needs):
            deferred.append(rule.id)
            continue
        for finding in rule.check(normalized.flat, facts):
            key = normalized.as_written(finding.key)
            if broken.explains(key, finding.keys):
                continue
            mark = normalized.recipe.mark(key)
            problems.append(Problem(rule.id, key, finding.message, mark, finding.severity))
    return Report(tuple(sort_problems(problems)), tuple(deferred))


class _Broken:
    """The keys that have an error, and which findings only follow from those."""

    def __init__(self, normalized: Normalized) -> None:
        self._keys = normalized.broken_keys
        self._around = {key[:end] for key in self._keys for end in range(1, len(key) + 1)}
        self._tops = normalized.broken
        self._origin = normalized.origin

    def explains(self, key: KeyPath, others: tuple[str, ...]) -> bool:
        """`key` as it stands in the file, `others` are top-level. One data set does not speak for another."""
        tops = {self._origin.get(other, other) for other in others}
        if key[0] != "datasets":
            tops.add(str(key[0]))
        elif key in self._around or any(key[:end] in self._keys for end in range(1, len(key))):
            return True
        return bool(tops & self._tops)


def _required(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    if recipe.model.base_model is None:
        yield Finding(("base_model",), "required: a hub id or a local folder")
    if recipe.data.datasets is None:
        yield Finding(("datasets",), "required: a list with `path` and `type` each")
    if recipe.optim.learning_rate is None:
        yield Finding(("learning_rate",), "required; 2e-4 is usual for LoRA, 2e-5 for all weights")


def _lora_needs_size(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    adapter = recipe.adapter
    for key in ("lora_r", "lora_alpha"):
        if adapter.adapter == "lora" and getattr(adapter, key) is None:
            yield Finding((key,), "required with `adapter: lora`; 16 is usual", keys=("adapter",))


def _lora_without_adapter(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    if recipe.adapter.adapter is None:
        for key in recipe.adapter.model_fields_set - {"adapter"}:
            message = "has no effect without `adapter: lora`: all weights will be trained"
            yield Finding((key,), message, Severity.WARNING, keys=("adapter",))


def _lora_targets_twice(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    if recipe.adapter.lora_target_linear and recipe.adapter.lora_target_modules is not None:
        message = "not runnable yet together with `lora_target_linear: true`. Keep one of the two."
        yield Finding(
            ("lora_target_modules",), message, Severity.PLANNED, keys=("lora_target_linear",)
        )


def _files_exist(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    missing = [key for key, fact in (facts.files or {}).items() if fact and fact.path is None]
    if missing:
        flat = recipe.flat()
        for key in missing:
            value = str(_value_at(flat, key))
            name = value if value.isprintable() else ascii(value)
            yield Finding(
                key,
                f"{name} does not exist, neither in the current folder nor beside the recipe. Mend the path.",
            )


def _files_can_be_used(_: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    for key, fact in (facts.files or {}).items():
        # Of a data set as a whole: its `type` and its columns decide as well as its `path`.
        about = key[:2] if key[0] == "datasets" else key
        for complaint in fact.complaints if fact is not None else ():
            yield Finding(about, complaint)


def _value_at(value: object, key: KeyPath) -> object:
    for part in key:
        value = value[part]  # type: ignore[index]  # the key came out of this recipe
    return value


EXCLUSIVE: Final = (
    ("save_steps", "saves_per_epoch"),
    ("eval_steps", "evals_per_epoch"),
    ("warmup_steps", "warmup_ratio"),
)


def _exclusive(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    flat = recipe.flat()
    for one, other in EXCLUSIVE:
        if one in flat and other in flat:
            yield Finding(
                (one,), f"stands beside `{other}`; both decide the same. Keep one.", keys=(other,)
            )


def _template_goes_with_jinja(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    template, jinja = recipe.data.chat_template, recipe.data.chat_template_jinja
    if template == "jinja" and jinja is None:
        yield Finding(
            ("chat_template",), "`jinja` needs `chat_template_jinja`: a template or a .jinja file"
        )
    if jinja is not None and template not in {None, "jinja"}:
        yield Finding(
            ("chat_template_jinja",), f"stands beside `chat_template: {template}`. Keep one."
        )


DATASET_KEYS: Final[dict[str, frozenset[str]]] = {
    "alpaca": frozenset(),
    "completion": frozenset({"field"}),
    "input_output": frozenset(),
    "chat_template": frozenset(
        {"field_messages", "message_property_mappings", "roles", "roles_to_train", "train_on_eos"}
    ),
}
"""Keys of a data set that only this type reads; `path`, `type`, `split` and `name` are everybody's."""


def _dataset_keys_are_read(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    for index, dataset in enumerate(recipe.data.datasets or ()):
        common = {"path", "type", "split", "name"}
        for key in sorted(dataset.model_fields_set - common - DATASET_KEYS[dataset.type]):
            yield Finding(
                ("datasets", index, key),
                f"`type: {dataset.type}` does not read this key. Take it out.",
            )


def _roles_are_told_apart(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    for index, dataset in enumerate(recipe.data.datasets or ()):
        seen: dict[str, str] = {}
        for role, names in (dataset.roles or {}).items():
            for name in names:
                if seen.setdefault(name, role) != role:
                    message = f"`{name}` is given to both `{seen[name]}` and `{role}`. Keep one."
                    yield Finding(("datasets", index, "roles"), message)


def _evaluation_needs_rows(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    size = recipe.data.val_set_size
    if size and size > 1 and size != int(size):
        message = f"{size} is neither a share up to 1 nor a whole number of rows."
        yield Finding(("val_set_size",), message)
    if size:
        if size == 1:
            yield Finding(
                ("val_set_size",),
                "1 is all rows: nothing is left to train on. 0.1 holds out a tenth.",
            )
        return
    for key in ("eval_steps", "evals_per_epoch"):
        if getattr(recipe.checkpoint, key) is not None:
            yield Finding(
                (key,), "no rows to evaluate on: set `val_set_size`.", keys=("val_set_size",)
            )


def _gpu_is_known(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    gpu = recipe.cloud.cloud.gpu if recipe.cloud.cloud else None
    if gpu is None or gpu.partition(":")[0] in GPUS:
        return
    name = gpu.partition(":")[0]
    near = difflib.get_close_matches(name.upper(), GPUS, n=1, cutoff=0.4)
    meant = f" Did you mean `{near[0]}`?" if near else ""
    yield Finding(("cloud", "gpu"), f"{name} is not one of {', '.join(GPUS)}.{meant}")


def _layout_fits(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine is None:
        return
    sizes = {key: getattr(recipe.parallel, key) for key in SIZES}
    try:
        solve(machine.num_nodes * machine.num_processes_per_node, sizes)
    except LayoutError as error:
        message = str(error).removeprefix(f"{error.key} ")
        yield Finding((error.key,), f"{message}", keys=("cloud",))


def _parallel_is_data_parallel(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    for key in ("dp_shard_size", "context_parallel_size", "tensor_parallel_size"):
        size = getattr(recipe.parallel, key)
        if size is not None and size > 1:
            yield Finding(
                (key,),
                f"not runnable yet: {size}; only copies of the model (DDP) run",
                Severity.PLANNED,
            )


def _device_can(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine is None:
        return
    if machine.device == "cpu" and recipe.model.attn_implementation == "flash_attention_2":
        yield Finding(
            ("attn_implementation",), "flash_attention_2 needs a GPU. On the CPU use sdpa."
        )
    if machine.device == "cuda" and recipe.model.bf16 is True and not machine.bf16:
        yield Finding(("bf16",), f"{machine.gpu} has no bfloat16. Use `bf16: auto` or another GPU.")
    if machine.device == "cpu" and recipe.model.tf32 is True:
        yield Finding(
            ("tf32",),
            "TF32 is a mode of NVIDIA GPUs; it has no effect on the CPU.",
            Severity.WARNING,
        )


def _length_fits_model(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    config = facts.model_config or {}
    limit = config.get("max_position_embeddings")
    length = recipe.data.sequence_len
    if isinstance(limit, int) and length is not None and length > limit:
        message = f"{length} is longer than the {limit} positions that the model was made for"
        yield Finding(("sequence_len",), message, Severity.WARNING)


def _budget_has_a_price(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    block = recipe.cloud.cloud
    if block is None or block.max_cost is None or block.price_per_hour is not None:
        return
    message = "nobody knows what an hour here costs. Add `price_per_hour`, in US dollars."
    yield Finding(("cloud", "max_cost"), message)


def _remote_code(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    if recipe.model.trust_remote_code:
        message = "code that comes with the model will run on your machines, with your secrets"
        yield Finding(("trust_remote_code",), message, Severity.WARNING)


RULES: Final = (
    Rule("R001", _required),
    Rule("R002", _files_exist, needs=("files",)),
    Rule("R003", _exclusive),
    Rule("R004", _lora_needs_size),
    Rule("R005", _lora_without_adapter),
    Rule("R006", _lora_targets_twice),
    Rule("R007", _template_goes_with_jinja),
    Rule("R008", _dataset_keys_are_read),
    Rule("R009", _evaluation_needs_rows),
    Rule("R010", _gpu_is_known),
    Rule("R011", _layout_fits, needs=("machine",)),
    Rule("R012", _parallel_is_data_parallel),
    Rule("R013", _device_can, needs=("machine",)),
    Rule("R014", _length_fits_model, needs=("model_config",)),
    Rule("R015", _remote_code),
    Rule("R016", _roles_are_told_apart),
    Rule("R017", _budget_has_a_price),
    Rule("R018", _files_can_be_used, needs=("files",)),
)
