"""Keys about what is written while training, and when."""

from typing import Literal

from ft.recipes.schema.base import Section, Seq, implemented, planned


class DynamicCheckpoint(Section):
    """Checkpoints on demand: someone puts a file into `output_dir`, and the run saves."""

    enabled: bool | None = planned(default=False)
    """Look for the file. Default: `false`."""
    check_interval: int | None = planned(default=10, ge=1)
    """Optimizer steps between two looks. Default: `10`."""
    trigger_file_path: str | None = planned(default="axolotl_checkpoint.save")
    """Name of the file in `output_dir`, without a folder. Default: `axolotl_checkpoint.save`."""


class CheckpointKeys(Section):
    """What is saved, measured and printed on the way."""

    output_dir: str | None = implemented(default="./model-out")
    """Folder in which the finished adapter or model is put. Default: `./model-out`."""
    save_steps: int | float | None = implemented(gt=0, le=1_000_000_000)
    """Optimizer steps between checkpoints; below 1 a share of the run. Not together with `saves_per_epoch`.
    Default: once per epoch."""
    saves_per_epoch: int | None = implemented(ge=1)
    """Checkpoints in each epoch, spread evenly, the last at its end. Default: one, unless `save_steps` is set."""
    save_total_limit: int | None = implemented(default=4, ge=1)
    """Checkpoints that are kept; the newest valid one always is. Default: `4`."""
    logging_steps: int | None = implemented(default=1, ge=1, le=1_000_000_000)
    """Optimizer steps between loss lines. Default: `1`."""
    eval_steps: int | float | None = implemented(gt=0, le=1_000_000_000)
    """Optimizer steps between evaluations; below 1 a share of the run. Not together with `evals_per_epoch`.
    Default: once per epoch."""
    evals_per_epoch: int | None = implemented(ge=0)
    """Evaluations in each epoch, spread evenly, the last at its end; 0: never.
    Default: one, unless `eval_steps` is set."""
    eval_batch_size: int | None = implemented(ge=1, le=1_000_000)
    """Rows per process and forward pass in an evaluation. Default: as `micro_batch_size`."""
    save_strategy: Literal["no", "steps", "epoch", "best"] | None = planned(false_is_off=False)
    """When checkpoints are written; `best`: after an evaluation that is better than all before.
    Default: what `save_steps` or `saves_per_epoch` says."""
    save_first_step: bool | None = planned(default=False)
    """Write a checkpoint after the first optimizer step as well, to see early whether it can be.
    Default: `false`."""
    save_only_model: bool | None = planned(default=False)
    """Save the weights and no optimizer state: smaller, and no run can be resumed from it.
    Default: `false`."""
    dynamic_checkpoint: DynamicCheckpoint | None = planned()
    """Save a checkpoint whenever a certain file appears. Default: not set."""
    resume_from_checkpoint: str | None = planned()
    """Folder of the checkpoint with which training goes on. Default: not set."""
    auto_resume_from_checkpoints: bool | None = planned(default=False)
    """Go on with the newest checkpoint that is in `output_dir`. Default: `false`."""
    eval_strategy: Literal["no", "steps", "epoch"] | None = planned(false_is_off=False)
    """When evaluations are done. Default: what `eval_steps` or `evals_per_epoch` says."""
    metric_for_best_model: str | None = planned()
    """Name of the measure by which checkpoints are compared, `eval_loss` for example. Default: the loss,
    but for `save_strategy: best`, which needs one."""
    greater_is_better: bool | None = planned()
    """Whether a larger `metric_for_best_model` is better. Default: true, unless its name ends in `loss`."""
    load_best_model_at_end: bool | None = planned(default=False)
    """Finish with the best checkpoint instead of the last. Default: `false`."""
    early_stopping_patience: int | None = planned(default=0, ge=0)
    """Evaluations in a row without a better result after which the run ends; 0: never. Default: `0`."""
    do_causal_lm_eval: bool | None = planned(default=False)
    """Measure in evaluations how the model completes rows, by `eval_causal_lm_metrics`. Default: `false`."""
    eval_causal_lm_metrics: (
        Seq[Literal["sacrebleu", "comet", "ter", "chrf", "perplexity"]] | None
    ) = planned()
    """Measures of `do_causal_lm_eval`. Default: all of them."""
    eval_table_size: int | None = planned(default=0, ge=0)
    """Answers that are generated in an evaluation and logged as a table; about as many, in whole batches.
    Default: `0`."""
    eval_max_new_tokens: int | None = planned(default=128, ge=1)
    """Longest answer that an evaluation generates, in tokens. Default: `128`."""
    do_bench_eval: bool | None = planned(default=False)
    """Answer multiple-choice questions in evaluations and report the share that is right.
    Default: `false`."""
    bench_dataset: str | None = planned(default="pharaouk/dharma-1/dharma_1_mini.json")
    """`do_bench_eval`: file with the questions, or `mmlu-zs`, `mmlu-fs`.
    Default: `pharaouk/dharma-1/dharma_1_mini.json`."""
    bench_split: str | None = planned(default="eval")
    """`do_bench_eval`: split of the questions. Default: `eval`."""
    generate_samples: bool | None = planned(default=False)
    """Show now and then how the model goes on with rows of the data. Default: `false`."""
    num_generation_samples: int | None = planned(default=3, ge=1)
    """`generate_samples`: rows each time. Default: `3`."""
    generation_max_new_tokens: int | None = planned(default=50, ge=1)
    """`generate_samples`: longest text, in tokens. Default: `50`."""
    generation_temperature: float | None = planned(default=0.7, ge=0)
    """`generate_samples`: temperature; 0 takes the likeliest token. Default: `0.7`."""
    generation_top_p: float | None = planned(gt=0, le=1)
    """`generate_samples`: draw from the likeliest tokens that have this much probability together.
    Default: from all."""
    generation_top_k: int | None = planned(ge=1)
    """`generate_samples`: draw from so many of the likeliest tokens. Default: from all."""
    generation_prompt_ratio: float | None = planned(default=0.5, ge=0, le=1)
    """`generate_samples`: share of a row that is given as the prompt. Default: `0.5`."""
    generation_do_sample: bool | None = planned(default=True)
    """`generate_samples`: draw tokens; false takes the likeliest. Default: `true`."""
    include_tkps: bool | None = planned(default=True)
    """Report tokens per second and GPU, without padding, with the loss. Default: `true`."""
    include_tokens_per_second: bool | None = planned(default=False)
    """Report tokens per second over the whole run at its end. Default: `false`."""
    profiler_steps: int | None = planned(default=0, ge=0)
    """Optimizer steps of which GPU memory and time are recorded in `output_dir`; 0: none. Default: `0`."""
    profiler_steps_start: int | None = planned(default=0, ge=0)
    """First step that `profiler_steps` records, counted from 0. Default: `0`."""
