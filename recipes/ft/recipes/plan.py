"""RunPlan: the contract between launcher and runtime. Everything decided, nothing `auto`, no laptop path.

Files are named `inputs/<name>`, relative to the folder that holds `plan.json`.
Where a field may be None, None is a value ("no limit", "no adapter"), never "decide later".
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ft.recipes.errors import PlanError
from ft.recipes.schema.dataset import ChatTemplateName, FormatName, Terminators

SCHEMA_VERSION = 5
"""Raised with every change of this file that an older runtime would misread."""

T = TypeVar("T")
Seq = Annotated[tuple[T, ...], Field(strict=False)]


class PlanSection(BaseModel):
    """Frozen and complete: no field has a default, so nothing can be forgotten by `resolve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Input(PlanSection):
    """A file or folder that travels with the run. `sha256` of a folder: see `digest.digest_of`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    kind: Literal["data", "model", "template", "include"]
    """`include`: a folder whose files the run finds in its working directory, under the same paths."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int
    """Bytes."""
    executables: Seq[str]
    """Files of an `include` that may be run; not every medium on the way keeps such a bit."""

    @property
    def path(self) -> str:
        return f"inputs/{self.name}"


class ModelPlan(PlanSection):
    base_model: str
    base_model_config: str
    tokenizer_config: str
    revision_of_model: str
    trust_remote_code: bool
    special_tokens: dict[str, str]
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]
    bf16: bool
    tf32: bool
    gradient_checkpointing: bool
    gradient_checkpointing_use_reentrant: bool


class UserDefinedPlan(PlanSection):
    """A format of the user's: columns, and the prompt that is put together from them."""

    system_prompt: str
    system_format: str
    format: str
    no_input_format: str
    field_instruction: str
    field_input: str
    field_output: str
    field_system: str


class DatasetPlan(PlanSection):
    path: str
    type: FormatName
    user_defined: UserDefinedPlan | None
    """None unless `type` is `user_defined`."""
    split: str
    name: str | None
    field: str
    field_messages: str
    message_property_mappings: dict[str, str]
    """property of the template (role, content, and what else the recipe names) -> property in the data."""
    roles: dict[str, str]
    """name in the data -> role of the template."""
    roles_to_train: Seq[str]
    train_on_eos: Terminators
    train_on_eot: Terminators
    message_field_training: str | None
    message_field_training_detail: str | None
    field_system: str
    field_tools: str
    field_thinking: str
    template_thinking_key: str
    split_thinking: bool
    drop_system_message: bool
    chat_template: ChatTemplateName
    """What renders the rows of this data set: its own template, else the recipe's."""
    chat_template_jinja: str | None
    """`inputs/<name>`, or the template itself; None unless `chat_template` is `jinja`."""


class DataPlan(PlanSection):
    datasets: Seq[DatasetPlan]
    test_datasets: Seq[DatasetPlan]
    """What is evaluated on, in place of rows of `datasets`; empty: `val_set_size` decides."""
    sequence_len: int
    min_sample_len: int
    excess_length_strategy: Literal["drop", "truncate", "raise"]
    train_on_inputs: bool
    val_set_size: int | float
    shuffle_merged_datasets: bool
    chat_template: ChatTemplateName
    """What the tokenizer is saved with."""
    chat_template_jinja: str | None
    """`inputs/<name>`, or the template itself; None unless `chat_template` is `jinja`."""
    chat_template_kwargs: dict[str, Any]
    """JSON; what the templates read beside the messages."""
    default_system_message: str | None
    """Of `chatml`; None: it has none."""
    eot_tokens: Seq[str]
    """Tokens that end a turn beside EOS; empty: not set."""
    date: datetime.date
    """What a template that asks for the day writes: the one on which the plan was made, whenever rows are made."""
    on_bad_row: Literal["stop", "skip"]
    sample_packing: bool
    eval_sample_packing: bool
    sample_packing_sequentially: bool
    sample_packing_group_size: int | None
    """None: all rows are packed together."""
    sample_packing_bin_size: int | None
    """None: a pack has as many rows as fit."""
    pad_to_sequence_len: bool


class MethodPlan(PlanSection):
    method: Literal["sft"]


class AdapterPlan(PlanSection):
    adapter: Literal["lora", "full"]
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: Seq[str] | str
    lora_modules_to_save: Seq[str]
    peft_use_rslora: bool


class ParallelPlan(PlanSection):
    device: Literal["cpu", "cuda"]
    gpu: str
    """Name in `catalog.GPUS`, or what the local driver calls it."""
    num_nodes: int
    num_processes_per_node: int
    dp_replicate_size: int
    dp_shard_size: int
    context_parallel_size: int
    tensor_parallel_size: int
    ddp_timeout: int
    """Seconds that a rank waits in a collective of a step before it says that another one is missing."""

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_processes_per_node

    @property
    def data_parallel_size(self) -> int:
        return self.dp_replicate_size * self.dp_shard_size


class OptimPlan(PlanSection):
    micro_batch_size: int
    gradient_accumulation_steps: int
    num_epochs: float
    max_steps: int | None
    optimizer: Literal["adamw_torch", "adamw_torch_fused"]
    learning_rate: float
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"]
    warmup_steps: int | None
    """None: `warmup_ratio` decides, from the steps of the run. One of the two is a number."""
    warmup_ratio: float | None
    warmup_at_most_steps: int | None
    """Upper bound for what the ratio gives."""
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    seed: int


class CheckpointPlan(PlanSection):
    save_steps: int | None
    """None: `saves_per_epoch` decides, from the rows that are left after filtering."""
    saves_per_epoch: int
    save_total_limit: int
    logging_steps: int
    eval_steps: int | None
    """None: `evals_per_epoch` decides."""
    evals_per_epoch: int
    eval_batch_size: int


class LimitsPlan(PlanSection):
    """When the run must end. They are no part of what is trained, so they may change between attempts."""

    timeout_s: int | None
    """Longest time of one attempt, from the agent's first moment."""
    max_cost: float | None
    """US dollars for all attempts together; never without `price_per_hour`."""
    price_per_hour: float | None
    """US dollars for an hour of all machines; None: unknown."""


class RunPlan(PlanSection):
    """A whole run, as JSON on disk."""

    schema_version: int
    model: ModelPlan
    data: DataPlan
    method: MethodPlan
    adapter: AdapterPlan
    parallel: ParallelPlan
    optim: OptimPlan
    checkpoint: CheckpointPlan
    limits: LimitsPlan
    inputs: Seq[Input]

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step, or packs of rows with `sample_packing`."""
        return (
            self.optim.micro_batch_size
            * self.optim.gradient_accumulation_steps
            * self.parallel.data_parallel_size
        )

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunPlan:
        """Raises: pydantic.ValidationError. For a plan of unknown age, see `read_plan`."""
        return cls.model_validate_json(text)

    @property
    def sha256(self) -> str:
        """What is trained, and nothing that a resume may change: of JSON without `limits`, its keys sorted.

        Nor is it another plan tomorrow. A mapping has no order: `roles` in another one are the same roles.
        """
        trained = self.model_dump(mode="json", exclude={"limits": True, "data": {"date"}})
        text = json.dumps(trained, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def read_plan(path: Path) -> RunPlan:
    """Raises: PlanError if it cannot be read, is of another schema version (both are named), or is no plan."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path.name} cannot be read: {error}") from error
    return plan_of(text, path.name)


def plan_of(text: bytes, name: str) -> RunPlan:
    """The plan in the bytes of a file that errors call `name`. Raises: PlanError as `read_plan` does."""
    try:
        version = json.loads(text).get("schema_version")
    except (ValueError, AttributeError) as error:
        raise PlanError(f"{name} cannot be read: {error}") from error
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"{name} has schema version {version}, this runtime reads {SCHEMA_VERSION}: "
            "launcher and runtime are of different versions of ft",
            hint="build the image again, or install the same ft-launcher on both sides",
        )
    try:
        return RunPlan.from_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{name}: {where}: {first['msg']}") from error
