"""Rules that every run needs: required keys, files, the machine, what does not run yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ft.recipes.catalog import FORMATS, GPUS
from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.layout import SIZES, LayoutError, solve
from ft.recipes.references import dataset_entries, references
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.rules.reading import fsdp_key, value_of, word, world_size
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.base import Status, info_of
from ft.recipes.schema.cloud import gpu_choices
from ft.recipes.spelling import DATASET_LISTS
from ft.recipes.vocabulary import EXCLUSIVE

PLACEHOLDER: Final = r"<[^<>]+>"
"""What public recipes leave for their reader to fill in; a string, so that it is compiled when it is first needed."""


def _required(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Without a model, rows and a learning rate there is nothing that could be trained."""
    if recipe.model.base_model is None:
        yield Finding(("base_model",), "required: a hub id or a local folder")
    if recipe.data.datasets is None and recipe.data.pretraining_dataset is None:
        yield Finding(("datasets",), "required: a list with `path` and `type` each")
    if recipe.optim.learning_rate is None:
        yield Finding(("learning_rate",), "required; 2e-4 is usual for LoRA, 2e-5 for all weights")


def _lora_needs_size(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Rank and scale decide what an adapter can learn; a silent default for them has surprised too many."""
    adapter = recipe.adapter
    if adapter.adapter not in {"lora", "qlora"} or adapter.lora_model_dir is not None:
        return
    for key in ("lora_r", "lora_alpha"):
        if getattr(adapter, key) is None:
            message = f"required with `adapter: {adapter.adapter}`; 16 is usual"
            yield Finding((key,), message, keys=("adapter",))


def _lora_without_adapter(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Keys of an adapter without `adapter:` mean a full fine-tune to Axolotl, which seldom was the wish."""
    if recipe.adapter.adapter is None:
        for key in recipe.adapter.model_fields_set:
            field = type(recipe.adapter).model_fields[key]
            if info_of(field).asks_for_nothing(getattr(recipe.adapter, key)):
                continue
            message = "has no effect without `adapter: lora`: all weights will be trained"
            yield Finding((key,), message, Severity.WARNING, keys=("adapter",))


def _lora_targets(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`lora_target_linear` adds every linear layer to the named ones; that union cannot be built yet.

    An empty list names no layer: there would be nothing to train.
    """
    keys = recipe.adapter
    if keys.lora_target_linear and keys.lora_target_modules:
        message = "not runnable yet together with `lora_target_linear: true`. Keep one of the two."
        yield Finding(
            ("lora_target_modules",), message, Severity.PLANNED, keys=("lora_target_linear",)
        )
    is_empty = keys.adapter in {"lora", "qlora"} and keys.lora_target_modules == ()
    if is_empty and not keys.lora_target_linear and not keys.lora_target_parameters:
        message = (
            "`[]` gives no layer an adapter. Name some, or take it out for every linear layer."
        )
        also = ("lora_target_linear", "lora_target_parameters", "adapter")
        yield Finding(("lora_target_modules",), message, keys=also)


def _files_exist(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """A path that is missing here is missing on the rented machine as well."""
    missing = [key for key, fact in (facts.files or {}).items() if fact and fact.path is None]
    if missing:
        flat = recipe.flat()
        for key in missing:
            value = str(_value_at(flat, key))
            name = value if value.isprintable() else ascii(value)
            if re.fullmatch(PLACEHOLDER, value):
                yield Finding(key, f"{name} is a placeholder: write your own.", Severity.PLANNED)
                continue
            yield Finding(
                key,
                f"{name} does not exist, neither in the current folder nor beside the recipe. Mend the path.",
            )


def _files_can_be_used(_: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """A file that is empty, or whose rows the format cannot read, would end the run after the machine is paid."""
    for key, fact in (facts.files or {}).items():
        # Of a data set as a whole: its `type` and its columns decide as well as its `path`.
        about = key[:2] if key[0] in DATASET_LISTS else key
        for complaint in fact.complaints if fact is not None else ():
            yield Finding(about, complaint)


def _value_at(value: object, key: KeyPath) -> object:
    for part in key:
        value = value[part]  # type: ignore[index]  # the key came out of this recipe
    return value


def _exclusive(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Two keys that decide the same thing: whichever wins, the other one was meant too.

    0 asks for nothing: there the other one decides.
    """
    for one, other in EXCLUSIVE:
        if value_of(recipe, one) and value_of(recipe, other):
            yield Finding(
                (one,), f"stands beside `{other}`; both decide the same. Keep one.", keys=(other,)
            )


def _template_goes_with_jinja(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`jinja` says that the template is given, and a template that is given is used only then."""
    template, jinja = recipe.data.chat_template, recipe.data.chat_template_jinja
    if template == "jinja" and jinja is None:
        yield Finding(
            ("chat_template",),
            "`jinja` needs `chat_template_jinja`: a template or a .jinja file",
            keys=("chat_template_jinja",),
        )
    if jinja is not None and template not in {None, "jinja"}:
        yield Finding(
            ("chat_template_jinja",), f"stands beside `chat_template: {template}`. Keep one."
        )


DATASET_KEYS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(FORMATS, frozenset()),
    "completion": frozenset({"field"}),
    "chat_template": frozenset(
        """
        field_messages message_property_mappings roles roles_to_train train_on_eos train_on_eot
        message_field_training message_field_training_detail chat_template chat_template_jinja
        drop_system_message field_system field_tools field_thinking template_thinking_key split_thinking
        """.split()
    ),
}
"""Keys of a data set that only this type reads; `path`, `type`, `split` and `name` are everybody's."""


def _dataset_keys_are_read(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A key that the format of a data set does not read has no effect: often it was meant for another format."""
    method = recipe.method
    for at, dataset in dataset_entries(recipe):
        of = dataset.type
        if of is None and not (method.rl or method.reward_model or method.process_reward_model):
            of = "pretokenized"
        if not isinstance(of, str) or of not in DATASET_KEYS:
            continue
        read = {"path", "type", "split", "name", *DATASET_KEYS[of]}
        for key in sorted(dataset.model_fields_set - read):
            info = info_of(type(dataset).model_fields[key])
            if info.status is Status.IMPLEMENTED and not info.asks_for_nothing(
                getattr(dataset, key)
            ):
                reader = (
                    f"`type: {of}` does"
                    if dataset.type
                    else "rows without a `type` are tokens, which do"
                )
                message = f"has no effect: {reader} not read it. Take it out."
                yield Finding((*at, key), message, Severity.WARNING)


def _roles_are_told_apart(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A name of the data that stands for two roles would be masked as the one that comes last."""
    for at, dataset in dataset_entries(recipe):
        seen: dict[str, str] = {}
        for role, names in (dataset.roles or {}).items():
            for name in names:
                if seen.setdefault(name, role) != role:
                    message = f"`{name}` is given to both `{seen[name]}` and `{role}`. Keep one."
                    yield Finding((*at, "roles"), message)


def _evaluation_needs_rows(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """An evaluation without rows held out does not happen, and a share of 1 holds out everything."""
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
    if recipe.data.test_datasets:
        return
    message = "no rows to evaluate on: set `val_set_size` or `test_datasets`."
    for key, severity in (("eval_steps", Severity.ERROR), ("evals_per_epoch", Severity.WARNING)):
        if getattr(recipe.checkpoint, key):
            yield Finding((key,), message, severity, keys=("val_set_size", "test_datasets"))


def _gpu_is_known(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Only a GPU of the catalog has a memory size, a price and a name that backends know."""
    block = recipe.cloud.cloud
    gpu = block.gpu if block else None
    for index, choice in enumerate(gpu_choices(gpu)):
        if choice.name in GPUS:
            continue
        # Slow to import, and hardly ever needed.
        import difflib

        name = choice.name.upper()
        sizes = [known for known in GPUS if known.startswith(f"{name}-")]
        near = sizes or difflib.get_close_matches(name, GPUS, n=1, cutoff=0.4)
        meant = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else ""
        at = () if isinstance(gpu, str) else (index,)
        message = f"{choice.name} is not one of {', '.join(GPUS)}.{meant}"
        yield Finding(("cloud", "gpu", *at), message)


def _layout_fits(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """The sizes must multiply to the number of processes; better found here than when all of them have started."""
    machine = facts.machine
    if machine is None:
        return
    sizes = {key: getattr(recipe.parallel, key) for key in SIZES}
    try:
        solve(world_size(machine), sizes, is_sharded=fsdp_key(recipe) is not None)
    except LayoutError as error:
        message = str(error).removeprefix(f"{error.key} ")
        yield Finding((error.key,), f"{message}", keys=("cloud",))


def _runs_today(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Values that are valid, and whose key runs, but not in this form: no marker of the schema can say that."""
    for at, dataset in dataset_entries(recipe):
        if isinstance(dataset.name, tuple):
            yield _not_yet((*at, "name"), "a list; write one data set for each")
    targets = recipe.adapter
    if (
        targets.lora_target_linear is False
        and targets.lora_target_modules is None
        and targets.adapter
    ):
        yield _not_yet(("lora_target_linear",), "PEFT's own choice; name `lora_target_modules`")
    for key in ("save_steps", "eval_steps"):
        steps = getattr(recipe.checkpoint, key)
        if isinstance(steps, float) and steps < 1:
            yield _not_yet((key,), f"{steps:g} of the run; write a number of steps")


def _not_yet(key: KeyPath, what: str) -> Finding:
    return Finding(key, f"not runnable yet: {what}", Severity.PLANNED)


def _steps_are_whole(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A cadence is a number of steps, or a share of the run below 1; 1.5 steps are neither."""
    for key in ("save_steps", "eval_steps"):
        steps = getattr(recipe.checkpoint, key)
        if steps is not None and steps > 1 and steps != int(steps):
            message = f"{steps} is neither a whole number of steps nor a share of the run below 1."
            yield Finding((key,), message)


def _device_can(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """Kernels and number formats that the machine lacks fail at the first step, or silently do nothing."""
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
    """Beyond the positions that it was made for a model reads, but it was never taught to."""
    config = facts.model_config or {}
    limit = config.get("max_position_embeddings")
    length = recipe.data.sequence_len
    if isinstance(limit, int) and length is not None and length > limit:
        message = f"{length} is longer than the {limit} positions that the model was made for"
        yield Finding(("sequence_len",), message, Severity.WARNING)


def _budget_has_a_price(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """A limit in dollars needs dollars per hour: the recipe's, or those of the backend's own list."""
    block = recipe.cloud.cloud
    if block is None or block.max_cost is None:
        return
    if block.price_per_hour is not None or facts.price_per_hour is not None:
        return
    message = "nobody knows what an hour here costs. Add `price_per_hour`, in US dollars."
    yield Finding(("cloud", "max_cost"), message)


def _remote_code(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """`trust_remote_code` runs what somebody put beside the weights: worth a look before it does."""
    if recipe.model.trust_remote_code:
        message = "code that comes with the model will run on your machines, with your secrets"
        yield Finding(("trust_remote_code",), message, Severity.WARNING)


PATHS: Final = (
    ("checkpoint", "output_dir"),
    ("checkpoint", "resume_from_checkpoint"),
    ("data", "dataset_prepared_path"),
    ("adapter", "lora_model_dir"),
)
"""Section and key of paths that need not be there yet; `references` has the others."""
VARIABLE: Final = r"\$(\w+|\{\w+\})"


def _variables_stay(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Nothing in a recipe is expanded: a folder that is called `${OUT}` would be made, or looked for."""
    paths: list[tuple[KeyPath, object]] = [
        (reference.key, reference.value) for reference in references(recipe)
    ]
    paths += [((key,), getattr(getattr(recipe, section), key)) for section, key in PATHS]
    for key, value in paths:
        # Unset is None; a folder may be given as `true` where there is a default one.
        found = re.search(VARIABLE, value) if isinstance(value, str) else None
        if found is not None:
            name = ".".join(map(str, key))
            message = (
                f"{found[0]} stays as it is: ft expands no variables in a recipe. Write the path itself, "
                f'or --set {name}="{word(value)}", which your shell expands.'
            )
            yield Finding(key, message, Severity.WARNING)


RULES: Final = (
    Rule("R001", _required),
    Rule("R002", _files_exist, needs=("files",)),
    Rule("R003", _exclusive),
    Rule("R004", _lora_needs_size),
    Rule("R005", _lora_without_adapter),
    Rule("R006", _lora_targets),
    Rule("R007", _template_goes_with_jinja),
    Rule("R008", _dataset_keys_are_read),
    Rule("R009", _evaluation_needs_rows),
    Rule("R010", _gpu_is_known),
    Rule("R011", _layout_fits, needs=("machine",)),
    Rule("R012", _runs_today),
    Rule("R013", _device_can, needs=("machine",)),
    Rule("R014", _length_fits_model, needs=("model_config",)),
    Rule("R015", _remote_code),
    Rule("R016", _roles_are_told_apart),
    Rule("R017", _budget_has_a_price),
    Rule("R018", _files_can_be_used, needs=("files",)),
    Rule("R019", _steps_are_whole),
    Rule("R119", _variables_stay),
)
