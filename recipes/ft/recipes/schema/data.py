"""Keys about all data: which data sets, how their rows become tokens, what is held out, packing."""

from typing import Annotated, Literal

from ft.recipes.schema.base import Section, Seq, accepted, implemented, limits, planned
from ft.recipes.schema.dataset import (
    MAX_TOKENS,
    RUNNING_TEMPLATES,
    ChatTemplateName,
    DatasetKeys,
    PretrainingDatasetKeys,
    RoleBoundary,
    TemplateValues,
)


class DataKeys(Section):
    """What is learned from."""

    datasets: Seq[DatasetKeys] | None = implemented(min_length=1)
    """Data sets, concatenated in this order. Required, unless there is a `pretraining_dataset`."""
    sequence_len: int | None = implemented(default=512, ge=2, le=MAX_TOKENS)
    """Longest row, in tokens. Default: `512`."""
    min_sample_len: int | None = implemented(default=2, ge=1, le=MAX_TOKENS)
    """Shortest row that is kept, in tokens. Default: `2`."""
    excess_length_strategy: Literal["drop", "truncate", "raise"] | None = implemented(
        default="drop"
    )
    """What happens to a row longer than `sequence_len`; every drop is counted. Default: `drop`."""
    train_on_inputs: bool | None = implemented(default=False)
    """Train on the prompt too. Default: `false`."""
    val_set_size: int | float | None = implemented(default=0, ge=0)
    """Rows held out for evaluation: a share up to 1, a count above. Default: `0`."""
    shuffle_merged_datasets: bool | None = implemented(default=True)
    """Shuffle the rows, a new order each epoch; false keeps the order of the files, in which packed rows
    go by the first that is in them. Default: `true`."""
    chat_template: ChatTemplateName | None = implemented(
        default="tokenizer_default", runs=RUNNING_TEMPLATES
    )
    """Template that renders conversations. `tokenizer_default_fallback_NAME` is the tokenizer's, or NAME
    where it has none. Default: `tokenizer_default`."""
    chat_template_jinja: str | None = implemented()
    """For `chat_template: jinja`: the template itself, or a `.jinja` file. Default: not set."""
    chat_template_kwargs: TemplateValues | None = implemented()
    """Values that the template reads beside the messages, `enable_thinking` for example. Default: none."""
    default_system_message: str | None = implemented()
    """System message that `chatml` gives a conversation without one. Default: the template's own."""
    eot_tokens: Seq[str] | None = implemented()
    """Tokens that end a turn in the template, each one a single token of the vocabulary.
    Default: the tokenizer's EOS token."""
    on_bad_row: Literal["stop", "skip"] | None = implemented(default="stop")
    """What becomes of a row that cannot be read, or cannot be masked with certainty: `stop` ends the run and
    names it, `skip` leaves it out and counts it. Default: `stop`."""
    test_datasets: Seq[DatasetKeys] | None = implemented(min_length=1)
    """Data sets to evaluate on, instead of `val_set_size`, with the same keys as in `datasets`. Default: none."""
    eval_sequence_len: int | None = planned(ge=2, le=MAX_TOKENS)
    """Longest row of an evaluation, in tokens. Default: as `sequence_len`."""
    shuffle_before_merging_datasets: bool | None = planned(default=False)
    """Shuffle each data set for itself before they are concatenated. Default: `false`."""
    curriculum_sampling: bool | None = planned(default=False)
    """Take the rows in the order in which they are. Default: `false`."""
    group_by_length: bool | None = planned(default=False)
    """Make batches of rows of about the same length: less padding, a less random order.
    Default: `false`."""
    dataset_exact_deduplication: bool | None = planned(default=False)
    """Keep one of several rows that are the same in every column. Default: `false`."""
    dataset_shard_num: int | None = planned(ge=1)
    """Cut the prepared rows into so many parts and take the one that `dataset_shard_idx` names.
    Default: not cut."""
    dataset_shard_idx: int | None = planned(ge=0)
    """Which of the `dataset_shard_num` parts is taken, counted from 0. Default: the first."""
    dataset_prepared_path: str | None = accepted(
        "ft keeps prepared rows by their content, see `ft cache ls`"
    )
    """Folder that keeps prepared rows for the next run. Default: not set."""
    num_dataset_shards_to_save: int | None = planned(ge=1)
    """Files into which prepared rows are written at `dataset_prepared_path`. Default: by their size."""
    push_dataset_to_hub: str | None = planned()
    """Hub repository that gets the prepared rows, as a private data set. Default: none."""
    dataset_num_proc: int | None = accepted(
        "as many processes prepare rows as the data is worth", ge=1
    )
    """Processes that prepare rows. Default: one for each CPU."""
    dataset_keep_in_memory: bool | None = accepted(
        "prepared rows are files that are mapped into memory"
    )
    """Keep rows in memory, not on disk, while they are prepared. Default: not set."""
    dataloader_num_workers: int | None = accepted(
        "batches are made in the process that trains", ge=0
    )
    """Processes that make batches beside the one that trains. Default: not set."""
    dataloader_pin_memory: bool | None = accepted("batches are copied from ordinary memory")
    """Put batches into page-locked memory, from which a GPU copies them faster. Default: not set."""
    dataloader_prefetch_factor: int | None = accepted("batches are made when needed", ge=1)
    """Batches that each of the `dataloader_num_workers` makes ahead. Default: not set."""
    dataloader_drop_last: bool | None = planned(default=False)
    """Leave out the last batch of an epoch if it is not full. Default: `false`."""
    remove_unused_columns: bool | None = accepted(
        "ft makes its own columns, none is unused", default=True
    )
    """Take away columns that the model's forward does not read. Default: `true`."""
    skip_prepare_dataset: bool | None = planned(default=False)
    """Train on the rows as they are; tokens are made batch by batch. Needed for images and sound.
    Default: `false`."""
    sample_packing: bool | None = implemented(default=False)
    """Put several rows into one of `sequence_len` tokens, in which each attends to itself alone. A batch is
    then so many packed rows. Default: `false`."""
    eval_sample_packing: bool | None = implemented()
    """The same for evaluations. Default: as `sample_packing`."""
    sample_packing_group_size: int | None = implemented(ge=1)
    """Rows among which the ones that fit together are looked for, so many neighbours at a time. It costs
    seconds to look among a million (Axolotl: 100000). Default: all rows."""
    sample_packing_bin_size: int | None = implemented(ge=1)
    """Most rows in a packed one (Axolotl: 200). Default: as many as fit."""
    sample_packing_sequentially: bool | None = implemented(default=False)
    """Pack neighbours only, so that rows come in the order in which they would without packing.
    Default: `false`."""
    sample_packing_mp_start_method: Literal["fork", "spawn", "forkserver"] | None = accepted(
        "rows are packed in one process"
    )
    """How the processes that pack are started. Default: Python's own choice."""
    sample_packing_eff_est: float | None = accepted(
        "steps are counted from the packs themselves", gt=0, le=1
    )
    """Share of a packed row that is not padding, to count steps without packing first.
    Default: it is measured."""
    multipack_real_batches: bool | None = planned()
    """Collate packed rows as a batch of `micro_batch_size`, not as one long row. Default: where the attention
    kernel cannot tell rows apart in one long row."""
    batch_flattening: bool | Literal["auto"] | None = planned(default=False)
    """Without packing: lay a batch's rows end to end, with no padding. `auto`: where the kernel can.
    Default: `false`."""
    pad_to_sequence_len: bool | None = implemented()
    """Pad every batch to `sequence_len`, so that all have one shape. Default: true with `sample_packing`."""
    pad_to_multiple_of: int | None = planned(ge=1)
    """Pad a batch to a multiple of so many tokens. Default: to its longest row."""
    use_pose: bool | None = planned(default=False)
    """Train for longer contexts than `sequence_len` by leaving gaps between positions (PoSE).
    Default: `false`."""
    pose_max_context_len: int | None = planned(ge=1)
    """`use_pose`: the longest context to train for, in tokens. Default: not set."""
    pose_num_chunks: int | None = planned(default=2, ge=1)
    """`use_pose`: pieces of a row between which gaps are left. Default: `2`."""
    pose_split_on_token_ids: Seq[Annotated[int, limits(ge=0)]] | None = planned()
    """`use_pose`: token ids before which a gap may be. Default: anywhere."""
    pretraining_dataset: (
        Annotated[Seq[PretrainingDatasetKeys], limits(min_length=1)]
        | PretrainingDatasetKeys
        | str
        | None
    ) = planned()
    """Plain text that is read while training, instead of `datasets`: a list, one data set, or its path.
    Needs `max_steps`. Default: none."""
    pretraining_sample_concatenation: bool | None = planned(default=False)
    """Without packing: join texts of a `pretraining_dataset` up to `sequence_len`. Default: `false`."""
    pretrain_multipack_attn: bool | None = planned(default=True)
    """With packing: let each text of a `pretraining_dataset` attend to itself alone. Default: `true`."""
    streaming: bool | None = planned(default=False)
    """Read `datasets` while training instead of before. Needs `max_steps`. Default: `false`."""
    streaming_multipack_buffer_size: int | None = planned(default=10_000, ge=1)
    """Rows that are read ahead and packed together while streaming. Default: `10000`."""
    image_size: (
        Annotated[int, limits(ge=1)]
        | tuple[Annotated[int, limits(ge=1)], Annotated[int, limits(ge=1)]]
        | None
    ) = planned()
    """Size to which images are brought, in pixels: the side of a padded square, or width and height.
    Default: the processor's, if it has one."""
    image_resize_algorithm: Literal["bilinear", "bicubic", "lanczos"] | None = planned(
        default="bilinear"
    )
    """How an image is made larger or smaller. Default: `bilinear`."""
    role_boundaries: Seq[RoleBoundary] | None = planned()
    """Images and sound: where turns begin and end, for models of which that is not known; it decides which
    tokens are trained. Default: the model's own."""
