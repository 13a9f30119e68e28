"""Keys of one data set: where its rows come from, their format, which of their tokens are trained."""

from typing import Annotated, Final, Literal, TypeAlias, get_args

from ft.recipes.nearest import suggestion
from ft.recipes.schema.base import Section, Seq, implemented, limits, planned
from ft.recipes.schema.values import Also, JsonMapping
from ft.recipes.vocabulary import DATASET_TYPES

FormatName = Literal[
    "alpaca",
    "alpaca:chat",
    "alpaca:chatml",
    "alpaca:instruct",
    "alpaca:phi",
    "alpaca_chat",
    "alpaca_chat.load_camel_ai",
    "alpaca_chat.load_concise",
    "alpaca_chat.load_no_prompt",
    "alpaca_chat.load_qa",
    "alpaca_instruct",
    "alpaca_instruct.load_no_prompt",
    "alpaca_w_system",
    "alpaca_w_system.load_chat",
    "alpaca_w_system.load_open_orca",
    "alpaca_w_system.load_open_orca_chatml",
    "chat_template",
    "completion",
    "concisechoice",
    "context_qa",
    "context_qa.load_404",
    "context_qa.load_v2",
    "explainchoice",
    "gpteacher",
    "input_output",
    "jeopardy",
    "oasst",
    "orcamini",
    "pretokenized",
    "summarizetldr",
    "user_defined",
]
"""Formats that run. A recipe does not write the two that have no name: `user_defined` is a block, and
`pretokenized` is meant where `type` is not set."""
UNWRITTEN_FORMATS = ("pretokenized", "user_defined")

ChatTemplateName: TypeAlias = (
    Literal[
        "tokenizer_default",
        "jinja",
        "alpaca",
        "aya",
        "chatml",
        "cohere",
        "command_a",
        "command_a_rag",
        "command_a_tool_use",
        "command_r",
        "deepseek_v2",
        "deepseek_v3",
        "exaone",
        "exaone4",
        "falcon_h1",
        "gemma",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4_unified",
        "gpt_oss",
        "granite",
        "jamba",
        "llama3",
        "llama3_2_vision",
        "llama4",
        "llava",
        "metharme",
        "mistral_v1",
        "mistral_v2v3",
        "mistral_v3_tekken",
        "mistral_v7_tekken",
        "nemotron_h",
        "phi_3",
        "phi_35",
        "phi_4",
        "pixtral",
        "qwen2_vl",
        "qwen3",
        "qwen3_5",
        "qwen_25",
    ]
    | Annotated[str, limits(pattern=r"^tokenizer_default_fallback_\w+$")]
)

NAMED_TEMPLATES = (
    "alpaca",
    "aya",
    "chatml",
    "cohere",
    "command_r",
    "deepseek_v3",
    "gemma",
    "gemma3",
    "gpt_oss",
    "granite",
    "llama3",
    "mistral_v1",
    "mistral_v2v3",
    "mistral_v3_tekken",
    "mistral_v7_tekken",
    "phi_3",
    "phi_35",
    "phi_4",
    "qwen3",
    "qwen3_5",
    "qwen_25",
)
"""Templates that `ft.runtime.data.templates` has."""
FALLBACK = "tokenizer_default_fallback_"
RUNNING_TEMPLATES = (
    "tokenizer_default",
    "jinja",
    *NAMED_TEMPLATES,
    *(f"{FALLBACK}{name}" for name in NAMED_TEMPLATES),
)
MAX_TOKENS: Final = 1 << 26
"""No model has ever read so long a row."""

Terminators = Literal["turn", "all", "last", "none"]


def _known_type(name: str) -> str:
    """Raises: ValueError if nobody could mean that: no name of Axolotl, and no `module.function`."""
    if name in DATASET_TYPES or (name.isprintable() and "." in name.strip(".")):
        return name
    if name.startswith("sharegpt"):
        raise ValueError(
            "sharegpt is gone: write `type: chat_template`, `field_messages: conversations` and "
            "`message_property_mappings: {role: from, content: value}`"
        )
    meant = suggestion(name, DATASET_TYPES) or " `ft explain datasets.type` lists those there are."
    raise ValueError(f"{name!r} is no format.{meant}")


TypeName = Annotated[str, Also(_known_type)]
"""A format by name, or a function of the user's as `module.function`."""


TemplateValues = JsonMapping
"""What a template reads beside the messages: anything that JSON can hold."""


class UserDefinedType(Section):
    """A format of one's own: columns of a row, and how its text is put together from them."""

    system_prompt: str | None = implemented()
    """System prompt of rows that have none of their own. Default: none."""
    system_format: str | None = implemented(default="{system}")
    """How the system prompt is written; `{system}` stands for it. Default: `{system}`."""
    format: str | None = implemented(default="{instruction} {input} ")
    """Prompt of a row with an input; `{instruction}` and `{input}` stand for the columns.
    Default: `{instruction} {input} `."""
    no_input_format: str | None = implemented(default="{instruction} ")
    """Prompt of a row without an input. Default: `{instruction} `."""
    field_instruction: str | None = implemented(default="instruction")
    """Column with the instruction. Default: `instruction`."""
    field_input: str | None = implemented(default="input")
    """Column with the input. Default: `input`."""
    field_output: str | None = implemented(default="output")
    """Column with the answer. Default: `output`."""
    field_system: str | None = implemented(default="system")
    """Column with the system prompt, which goes before `system_prompt`. Default: `system`."""
    field_prompt: str | None = planned(default="prompt")
    """Preferences: column with the prompt. Default: `prompt`."""
    field_chosen: str | None = planned(default="chosen")
    """Preference pairs: column with the better answer. Default: `chosen`."""
    field_rejected: str | None = planned(default="rejected")
    """Preference pairs: column with the worse answer. Default: `rejected`."""
    field_completion: str | None = planned(default="completion")
    """KTO: column with the answer. Default: `completion`."""
    field_label: str | bool | None = planned(default="label")
    """KTO: column that says whether the answer is wanted. Default: `label`."""
    prompt_format: str | None = planned()
    """Preferences: how the prompt is written, from `{system}` and `{prompt}`.
    Default: the prompt as it is."""
    chosen_format: str | None = planned()
    """Preference pairs: how the better answer is written, from `{chosen}`. Default: the answer as it is."""
    rejected_format: str | None = planned()
    """Preference pairs: how the worse answer is written, from `{rejected}`. Default: the answer as it is."""
    completion_format: str | None = planned()
    """KTO: how the answer is written, from `{completion}`. Default: the answer as it is."""


class DatasetKeys(Section):
    """One data set of `datasets:` or `test_datasets:`."""

    path: str
    """Local file or folder, or hub id. Required, unless `data_files` says where the rows are."""
    type: TypeName | UserDefinedType | None = implemented(
        runs=tuple(name for name in get_args(FormatName) if name not in UNWRITTEN_FORMATS)
    )
    """How a row is read: the name of a format, or a block with a format of one's own.
    Default: rows are already what the method trains on, `input_ids` and `labels` for SFT."""
    split: str | None = implemented(default="train")
    """Split of the data set, also a part of it, `train[:10%]`. Default: `train`."""
    name: str | Seq[str] | None = implemented()
    """Configuration of a hub data set; a list means one data set each. Default: the data set's own."""
    field: str | None = implemented(default="text")
    """`completion`: column with the text. Default: `text`."""
    field_messages: str | None = implemented(default="messages")
    """`chat_template`: column with the list of messages. Default: `messages`."""
    message_property_mappings: dict[str, str] | None = implemented(
        default={"role": "role", "content": "content"}
    )
    """`chat_template`: property of the template -> property of a message in the data.
    Default: `{"role": "role", "content": "content"}`."""
    roles: dict[str, Seq[str]] | None = implemented()
    """`chat_template`: role of the template -> names in the data. Default: human and user are `user`,
    gpt and assistant are `assistant`, system and tool are themselves."""
    roles_to_train: Seq[str] | None = implemented()
    """`chat_template`: whose turns are trained. Default: the assistant's."""
    train_on_eos: Terminators | None = implemented(default="turn")
    """`chat_template`: which end-of-turn tokens are trained; `turn`: those of trained turns.
    Default: `turn`."""
    train_on_eot: Terminators | None = implemented()
    """`chat_template`: the same choice for the tokens in `eot_tokens`. Default: as `train_on_eos`."""
    message_field_training: str | None = implemented()
    """`chat_template`: property of a message that says, true or false, whether its turn is trained.
    Goes before `roles_to_train`. Default: not set."""
    message_field_training_detail: str | None = implemented()
    """`chat_template`: property of a message with a list of `begin_offset`, `end_offset` and `train`, in
    characters of its content, both ends included: which parts of a turn are trained. Default: not set."""
    chat_template: ChatTemplateName | None = implemented(
        default="tokenizer_default", runs=RUNNING_TEMPLATES
    )
    """`chat_template`: template of this data set. The tokenizer's is the one that the recipe's
    `chat_template` says, where it says one. Default: `tokenizer_default`."""
    chat_template_jinja: str | None = implemented()
    """`chat_template`: a template of one's own for this data set, as text or a file. Default: not set."""
    drop_system_message: bool | None = implemented(default=False)
    """`chat_template`: leave out a conversation's system message. Default: `false`."""
    field_system: str | None = implemented(default="system")
    """`chat_template`: column with the system message of a conversation without one. Default: `system`."""
    field_tools: str | None = implemented(default="tools")
    """`chat_template`: column with the tools that a conversation may call. Default: `tools`."""
    field_thinking: str | None = implemented(default="reasoning_content")
    """`chat_template`: property of a message with the thoughts. Default: `reasoning_content`."""
    template_thinking_key: str | None = implemented(default="reasoning_content")
    """`chat_template`: name by which the template knows the thoughts. Default: `reasoning_content`."""
    split_thinking: bool | None = implemented(default=False)
    """`chat_template`: take thoughts, between `<think>` tags or such, out of an assistant's content and give
    them to the template as a property of their own. Default: `false`."""
    field_human: str | None = planned()
    """Name of the user's side in old conversation formats. Default: not set."""
    field_model: str | None = planned()
    """Name of the assistant's side in old conversation formats. Default: not set."""
    conversation: str | None = planned()
    """Name of the prompt style of old conversation formats. Default: not set."""
    field_chosen: str | None = planned(default="chosen")
    """Preference pairs: column with the better answer. Default: `chosen`."""
    field_rejected: str | None = planned(default="rejected")
    """Preference pairs: column with the worse answer. Default: `rejected`."""
    step_separator: str | None = planned()
    """`stepwise_supervised`: text after each step, whose last token carries the label.
    Default: a line break."""
    max_completion_length: int | None = planned(ge=1)
    """`stepwise_supervised`: longest solution, in tokens; the rest is cut off. Default: no limit."""
    train_on_last_step_only: bool | None = planned(default=False)
    """`stepwise_supervised`: learn from the label of the last step alone. Default: `false`."""
    logprobs_field: str | None = planned()
    """Distillation: column with the teacher's likeliest tokens and their log probabilities.
    Default: not set."""
    temperature: float | None = planned(gt=0)
    """Distillation: temperature at which the teacher's log probabilities were taken. Default: not set."""
    ds_type: str | None = planned()
    """File format of `path`: `json`, `csv`, `parquet`, `arrow`, `text`. Default: by the file's suffix."""
    data_files: str | Seq[str] | None = planned()
    """Files of the data set that are read, instead of all. Default: all of them."""
    revision: str | None = planned()
    """Branch, tag or commit of a hub data set. Default: the newest."""
    trust_remote_code: bool | None = planned(default=False)
    """Run Python code that comes with the data set. It runs on your machines with your secrets.
    Default: `false`."""
    shards: int | None = planned(ge=1)
    """Cut the data set into so many parts and take the one that `shards_idx` names. Default: not cut."""
    shards_idx: int | None = planned(ge=0)
    """Which of the `shards` is taken, counted from 0. Default: the first."""
    preprocess_shards: int | None = planned(ge=1)
    """Make tokens in so many parts, one after the other, to save memory. Not together with `shards`.
    Default: all at once."""
    input_format: str | None = planned()
    """Handed to formats that read it, as one's own may. Default: not set."""
    input_transform: str | None = planned()
    """Handed to formats that read it, as one's own may. Default: not set."""
    length: int | None = planned(default=1000, ge=1)
    """`_synthetic`: rows of random tokens that are made up. Default: `1000`."""
    sequence_length: int | None = planned(ge=1)
    """`_synthetic`: tokens of each row. Default: as `sequence_len` of the recipe."""
    min_input_id: int | None = planned(default=100, ge=0)
    """`_synthetic`: smallest token id. Default: `100`."""
    max_input_id: int | None = planned(ge=1)
    """`_synthetic`: limit of the token ids. Default: the size of the vocabulary."""
    seed: int | None = planned(ge=0, lt=2**32)
    """`_synthetic`: of the random tokens. Default: not set."""


class PretrainingDatasetKeys(Section):
    """A data set of `pretraining_dataset:`, plain text that is read while training."""

    path: str
    """Local file or folder, or hub id. Required, unless `data_files` says where the rows are."""
    type: str | None = planned(default="pretrain")
    """How a row is read: `pretrain`, or `completion`. Default: `pretrain`."""
    name: str | None = planned()
    """Configuration of a hub data set. Default: the data set's own."""
    split: str | None = planned(default="train")
    """Split of the data set. Default: `train`."""
    text_column: str | None = planned(default="text")
    """`pretrain`: column with the text. Default: `text`."""
    field: str | None = planned(default="text")
    """`completion`: column with the text. Default: `text`."""
    skip: int | None = planned(default=0, ge=0)
    """Rows at the beginning that are left out. Default: `0`."""
    ds_type: str | None = planned()
    """File format of `path`: `json`, `csv`, `parquet`, `arrow`, `text`. Default: by the file's suffix."""
    data_files: str | Seq[str] | None = planned()
    """Files of the data set that are read, instead of all. Default: all of them."""
    revision: str | None = planned()
    """Branch, tag or commit of a hub data set. Default: the newest."""
    trust_remote_code: bool | None = planned(default=False)
    """Run Python code that comes with the data set. It runs on your machines with your secrets.
    Default: `false`."""


class RoleBoundary(Section):
    """Where the turns of one role begin and end in a rendered conversation."""

    role: str
    """Name of the role, as in `roles_to_train`. Required."""
    start: str
    """Text with which a turn begins. Required."""
    end: str | None = planned()
    """Text with which a turn ends; `eos_token` stands for the tokenizer's. Default: the end of the row."""
    include_start: bool | None = planned(default=False)
    """Train the tokens of `start` with a trained turn. Default: `false`."""
    include_end: bool | None = planned(default=True)
    """Train the tokens of `end` as far as `train_on_eos` says so. Default: `true`."""
