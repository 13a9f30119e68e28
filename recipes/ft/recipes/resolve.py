"""(FlatRecipe, Facts) -> RunPlan: the only place where a default is decided."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final, Literal

from ft.recipes.catalog import LORA_LINEAR
from ft.recipes.errors import KeyPath, PlanError
from ft.recipes.facts import Facts, FileFact, Included, Machine
from ft.recipes.layout import SIZES, LayoutError, solve
from ft.recipes.plan import (
    SCHEMA_VERSION,
    AdapterPlan,
    CheckpointPlan,
    DataPlan,
    DatasetPlan,
    Input,
    LimitsPlan,
    MethodPlan,
    ModelPlan,
    OptimPlan,
    ParallelPlan,
    RunPlan,
    UserDefinedPlan,
)
from ft.recipes.references import dataset_entries
from ft.recipes.rules.reading import fsdp_key
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import duration_s
from ft.recipes.schema.dataset import DatasetKeys, UserDefinedType
from ft.recipes.schema.optim import OptimKeys

DEFAULT_OUTPUT_DIR: Final = "./model-out"
DEFAULT_WARMUP_RATIO: Final = 0.03
DEFAULT_WARMUP_AT_MOST_STEPS: Final = 100
DEFAULT_DDP_TIMEOUT_S: Final = 600
DEFAULT_ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt"),
    "system": ("system",),
    "tool": ("tool",),
}


def resolve(recipe: FlatRecipe, facts: Facts) -> RunPlan:
    """Decide everything that the recipe leaves open.

    `recipe` has passed `rules.check` without an error; `facts.files` and `facts.machine` are known.
    Raises: PlanError if the machine does not fit.
    """
    if facts.files is None or facts.machine is None:
        raise PlanError("files and machine must be known before a plan can be made")
    files = facts.files
    parallel = _parallel(recipe, facts.machine)
    return RunPlan(
        schema_version=SCHEMA_VERSION,
        model=_model(recipe, facts.machine, files),
        data=_data(recipe, files, facts.today),
        method=MethodPlan(method="sft"),
        adapter=_adapter(recipe),
        parallel=parallel,
        optim=_optim(recipe),
        checkpoint=_checkpoint(recipe),
        limits=_limits(recipe, facts),
        inputs=_inputs(files, facts.included),
    )


def _located(value: str, key: KeyPath, files: Mapping[KeyPath, FileFact | None]) -> str:
    """`inputs/<name>` for a local file, the value itself for a hub id."""
    fact = files.get(key)
    return f"inputs/{fact.name}" if fact is not None else value


def _running(value: object) -> Any:
    """A value that runs: the others were refused before, and the plan's own types would refuse them again."""
    return value


def _inputs(
    files: Mapping[KeyPath, FileFact | None], included: Included | None
) -> tuple[Input, ...]:
    """Each file once, sorted by name, however often the recipe refers to it; what is included as one folder."""
    by_name = {
        fact.name: Input(
            name=fact.name, kind=fact.kind, sha256=fact.sha256, size=fact.size, executables=()
        )
        for fact in files.values()
        if fact is not None
    }
    if included is not None:
        by_name[included.name] = Input(
            name=included.name,
            kind="include",
            sha256=included.sha256,
            size=included.size,
            executables=tuple(file.path for file in included.files if file.is_executable),
        )
    return tuple(by_name[name] for name in sorted(by_name))


def _model(
    recipe: FlatRecipe, machine: Machine, files: Mapping[KeyPath, FileFact | None]
) -> ModelPlan:
    keys = recipe.model
    base = _located(keys.base_model or "", ("base_model",), files)
    config, tokenizer = keys.base_model_config, keys.tokenizer_config
    tokens = keys.special_tokens
    kwargs = keys.gradient_checkpointing_kwargs
    return ModelPlan(
        base_model=base,
        base_model_config=_located(config, ("base_model_config",), files) if config else base,
        tokenizer_config=_located(tokenizer, ("tokenizer_config",), files) if tokenizer else base,
        revision_of_model=keys.revision_of_model or "main",
        trust_remote_code=bool(keys.trust_remote_code),
        special_tokens=tokens.model_dump(exclude_none=True) if tokens else {},
        attn_implementation=_running(keys.attn_implementation or "sdpa"),
        bf16=_auto(keys.bf16, when_auto=machine.bf16),
        tf32=machine.tf32 and _auto(keys.tf32, when_auto=machine.tf32),
        gradient_checkpointing=bool(keys.gradient_checkpointing),
        gradient_checkpointing_use_reentrant=bool(kwargs and kwargs.use_reentrant),
    )


def _auto(value: bool | Literal["auto"] | None, *, when_auto: bool) -> bool:
    return when_auto if value is None or value == "auto" else value


def _data(recipe: FlatRecipe, files: Mapping[KeyPath, FileFact | None], today: date) -> DataPlan:
    keys = recipe.data
    jinja = keys.chat_template_jinja
    template = "jinja" if jinja else keys.chat_template or "tokenizer_default"
    text = _located(jinja, ("chat_template_jinja",), files) if jinja else None
    packed = bool(keys.sample_packing)
    sets: dict[object, list[DatasetPlan]] = {"datasets": [], "test_datasets": []}
    for at, dataset in dataset_entries(recipe):
        sets[at[0]].append(_dataset(dataset, at, files, (template, text)))
    return DataPlan(
        datasets=tuple(sets["datasets"]),
        test_datasets=tuple(sets["test_datasets"]),
        sequence_len=keys.sequence_len or 512,
        min_sample_len=keys.min_sample_len or 2,
        excess_length_strategy=keys.excess_length_strategy or "drop",
        train_on_inputs=bool(keys.train_on_inputs),
        val_set_size=keys.val_set_size or 0,
        shuffle_merged_datasets=keys.shuffle_merged_datasets is not False,
        chat_template=template,
        chat_template_jinja=text,
        chat_template_kwargs=keys.chat_template_kwargs or {},
        default_system_message=keys.default_system_message if template == "chatml" else None,
        eot_tokens=keys.eot_tokens or (),
        date=today,
        on_bad_row=keys.on_bad_row or "stop",
        sample_packing=packed,
        eval_sample_packing=_auto(keys.eval_sample_packing, when_auto=packed),
        sample_packing_sequentially=bool(keys.sample_packing_sequentially),
        sample_packing_group_size=keys.sample_packing_group_size,
        sample_packing_bin_size=keys.sample_packing_bin_size,
        pad_to_sequence_len=_auto(keys.pad_to_sequence_len, when_auto=packed),
    )


def _dataset(
    keys: DatasetKeys,
    at: KeyPath,
    files: Mapping[KeyPath, FileFact | None],
    of_the_recipe: tuple[str, str | None],
) -> DatasetPlan:
    """`at`: where it stands in the recipe. `of_the_recipe`: its template and, for `jinja`, the text."""
    roles = keys.roles or DEFAULT_ROLES
    template, text = _template(keys, at, files, of_the_recipe)
    train_on_eos = keys.train_on_eos or "turn"
    return DatasetPlan(
        path=_located(keys.path, (*at, "path"), files),
        type=_format(keys),
        user_defined=_user_defined(keys.type) if isinstance(keys.type, UserDefinedType) else None,
        split=keys.split or "train",
        name=_running(keys.name),
        field=keys.field or "text",
        field_messages=keys.field_messages or "messages",
        message_property_mappings={
            "role": "role",
            "content": "content",
            **(keys.message_property_mappings or {}),
        },
        roles={name: role for role, names in roles.items() for name in names},
        roles_to_train=("assistant",) if keys.roles_to_train is None else keys.roles_to_train,
        train_on_eos=train_on_eos,
        train_on_eot=keys.train_on_eot or train_on_eos,
        message_field_training=keys.message_field_training,
        message_field_training_detail=keys.message_field_training_detail,
        field_system=keys.field_system or "system",
        field_tools=keys.field_tools or "tools",
        field_thinking=keys.field_thinking or "reasoning_content",
        template_thinking_key=keys.template_thinking_key or "reasoning_content",
        split_thinking=bool(keys.split_thinking),
        drop_system_message=bool(keys.drop_system_message),
        chat_template=template,
        chat_template_jinja=text,
    )


def _format(keys: DatasetKeys) -> Any:
    """The name of the format; one that does not run was refused before."""
    if isinstance(keys.type, UserDefinedType):
        return "user_defined"
    return keys.type or "pretokenized"


def _user_defined(keys: UserDefinedType) -> UserDefinedPlan:
    return UserDefinedPlan(
        system_prompt=keys.system_prompt or "",
        system_format="{system}" if keys.system_format is None else keys.system_format,
        format="{instruction} {input} " if keys.format is None else keys.format,
        no_input_format=(
            "{instruction} " if keys.no_input_format is None else keys.no_input_format
        ),
        field_instruction=keys.field_instruction or "instruction",
        field_input=keys.field_input or "input",
        field_output=keys.field_output or "output",
        field_system=keys.field_system or "system",
    )


def _template(
    keys: DatasetKeys,
    at: KeyPath,
    files: Mapping[KeyPath, FileFact | None],
    of_the_recipe: tuple[str, str | None],
) -> tuple[str, str | None]:
    """The data set's template and, for `jinja`, its text: its own, else the recipe's.

    The tokenizer's own is the recipe's as well: it is what the tokenizer is given.
    """
    jinja, name = keys.chat_template_jinja, keys.chat_template
    if jinja is not None and name in {None, "jinja"}:
        return "jinja", _located(jinja, (*at, "chat_template_jinja"), files)
    if name is None or name == "tokenizer_default":
        return of_the_recipe
    return name, None


def _adapter(recipe: FlatRecipe) -> AdapterPlan:
    keys = recipe.adapter
    if keys.adapter is None:
        return AdapterPlan(
            adapter="full",
            lora_r=0,
            lora_alpha=0,
            lora_dropout=0.0,
            lora_target_modules=(),
            lora_modules_to_save=(),
            peft_use_rslora=False,
        )
    return AdapterPlan(
        adapter="lora",
        lora_r=keys.lora_r or 0,
        lora_alpha=keys.lora_alpha or 0,
        lora_dropout=keys.lora_dropout or 0.0,
        lora_target_modules=keys.lora_target_modules or LORA_LINEAR,
        lora_modules_to_save=keys.lora_modules_to_save or (),
        peft_use_rslora=bool(keys.peft_use_rslora),
    )


def _parallel(recipe: FlatRecipe, machine: Machine) -> ParallelPlan:
    try:
        layout = solve(
            machine.num_nodes * machine.num_processes_per_node,
            {key: getattr(recipe.parallel, key) for key in SIZES},
            is_sharded=fsdp_key(recipe) is not None,
        )
    except LayoutError as error:
        raise PlanError(str(error)) from error
    return ParallelPlan(
        device=machine.device,
        gpu=machine.gpu,
        num_nodes=machine.num_nodes,
        num_processes_per_node=machine.num_processes_per_node,
        dp_replicate_size=layout.dp_replicate_size,
        dp_shard_size=layout.dp_shard_size,
        context_parallel_size=layout.context_parallel_size,
        tensor_parallel_size=layout.tensor_parallel_size,
        ddp_timeout=recipe.parallel.ddp_timeout or DEFAULT_DDP_TIMEOUT_S,
    )


def _optim(recipe: FlatRecipe) -> OptimPlan:
    keys = recipe.optim
    warmup_steps, warmup_ratio, at_most = _warmup(keys)
    return OptimPlan(
        micro_batch_size=keys.micro_batch_size or 1,
        gradient_accumulation_steps=keys.gradient_accumulation_steps or 1,
        num_epochs=keys.num_epochs or 1.0,
        max_steps=keys.max_steps,
        optimizer=_running(keys.optimizer or "adamw_torch_fused"),
        learning_rate=keys.learning_rate or 0.0,
        lr_scheduler=_running(keys.lr_scheduler or "cosine"),
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
        warmup_at_most_steps=at_most,
        weight_decay=keys.weight_decay or 0.0,
        adam_beta1=0.9 if keys.adam_beta1 is None else keys.adam_beta1,
        adam_beta2=0.999 if keys.adam_beta2 is None else keys.adam_beta2,
        adam_epsilon=keys.adam_epsilon or 1e-8,
        max_grad_norm=1.0 if keys.max_grad_norm is None else keys.max_grad_norm,
        seed=42 if keys.seed is None else keys.seed,
    )


def _warmup(keys: OptimKeys) -> tuple[int | None, float | None, int | None]:
    """Steps or a ratio, and the most steps that the ratio may give. 0 asks for nothing beside the other one."""
    steps, ratio = keys.warmup_steps, keys.warmup_ratio
    if steps is None and ratio is None:
        return None, DEFAULT_WARMUP_RATIO, DEFAULT_WARMUP_AT_MOST_STEPS
    if ratio is None or (steps is not None and not ratio):
        return steps, None, None
    return (steps, None, None) if steps else (None, ratio, None)


def _checkpoint(recipe: FlatRecipe) -> CheckpointPlan:
    keys = recipe.checkpoint
    evaluates = bool(recipe.data.val_set_size or recipe.data.test_datasets)
    return CheckpointPlan(
        save_steps=_running(keys.save_steps),
        saves_per_epoch=keys.saves_per_epoch or 1,
        save_total_limit=keys.save_total_limit or 4,
        logging_steps=keys.logging_steps or 1,
        eval_steps=_running(keys.eval_steps),
        evals_per_epoch=(1 if keys.evals_per_epoch is None else keys.evals_per_epoch)
        if evaluates
        else 0,
        eval_batch_size=keys.eval_batch_size or recipe.optim.micro_batch_size or 1,
    )


def _limits(recipe: FlatRecipe, facts: Facts) -> LimitsPlan:
    """An hour costs what the recipe says, else what the backend's list says."""
    block = recipe.cloud.cloud
    timeout = block.timeout if block else None
    price = block.price_per_hour if block else None
    return LimitsPlan(
        timeout_s=None if timeout is None else duration_s(timeout),
        max_cost=block.max_cost if block else None,
        price_per_hour=facts.price_per_hour if price is None else price,
    )
