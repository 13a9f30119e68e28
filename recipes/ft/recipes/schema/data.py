"""Keys about data: where rows come from, how they become tokens, which tokens are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ft.recipes.schema.base import Section, Seq

FormatName = Literal["alpaca", "chat_template", "completion", "input_output"]


class MessageProperties(Section):
    """Which property of a message holds what."""

    role: str | None = None
    """Property with the speaker. Default: `role`."""
    content: str | None = None
    """Property with the words. Default: `content`."""


class DatasetKeys(Section):
    """One data set of `datasets:`."""

    path: str
    """Local file or folder, or hub id."""
    type: FormatName
    """How a row is read."""
    split: str | None = None
    """Split of the data set. Default: `train`."""
    name: str | None = None
    """Configuration of a hub data set."""
    field: str | None = None
    """`completion`: column with the text. Default: `text`."""
    field_messages: str | None = None
    """`chat_template`: column with the list of messages. Default: `messages`."""
    message_property_mappings: MessageProperties | None = None
    """`chat_template`: properties of a message. Default: `role` and `content`."""
    roles: dict[str, Seq[str]] | None = None
    """`chat_template`: role of the template -> names in the data. Default: human and user are `user`,
    gpt and assistant are `assistant`, system and tool are themselves."""
    roles_to_train: Seq[str] | None = None
    """`chat_template`: whose turns are trained. Default: `[assistant]`."""
    train_on_eos: Literal["turn", "all", "last", "none"] | None = None
    """`chat_template`: which end-of-turn tokens are trained. Default: `turn`: those of trained turns."""


class DataKeys(Section):
    """What is learned from."""

    datasets: Seq[DatasetKeys] | None = Field(default=None, min_length=1)
    """Data sets, concatenated in this order. Required."""
    sequence_len: int | None = Field(default=None, ge=2)
    """Longest row, in tokens. Default: 512."""
    min_sample_len: int | None = Field(default=None, ge=1)
    """Shortest row that is kept, in tokens. Default: 2."""
    excess_length_strategy: Literal["drop", "truncate", "raise"] | None = None
    """What happens to a row longer than `sequence_len`. Default: `drop`; every drop is counted."""
    train_on_inputs: bool | None = None
    """Train on the prompt too. Default: false."""
    val_set_size: int | float | None = Field(default=None, ge=0)
    """Rows held out for evaluation: a share up to 1, a count above. Default: 0."""
    shuffle_merged_datasets: bool | None = None
    """Shuffle the rows, a new order each epoch. Default: true. false keeps the order of the files."""
    chat_template: Literal["tokenizer_default", "chatml", "jinja"] | None = None
    """Template that renders conversations. Default: `tokenizer_default`."""
    chat_template_jinja: str | None = None
    """For `chat_template: jinja`: the template itself, or a `.jinja` file."""
