"""Keys about the run as a program: plugins, launchers, the inference page, what Axolotl keeps for itself."""

from typing import Annotated

from ft.recipes.schema.base import Section, Seq, accepted, implemented, limits, planned

NonEmpty = Annotated[str, limits(min_length=1)]


class RunKeys(Section):
    """What is loaded into the run and how it is started."""

    extends: Seq[NonEmpty] | NonEmpty | None = implemented()
    """A recipe that this one builds on, or a list of them: files, names in the gallery or https addresses.
    What stands here goes before what stands there; blocks are merged key by key. Default: none."""
    plugins: Seq[str] | None = implemented()
    """Dotted paths of plugin classes. A plugin of Axolotl's turns on the keys that belong to it.
    Default: none."""
    strict: bool | None = accepted("what `--set` says is always done", default=False)
    """In Axolotl: take only those keys from the command line that the file has. Default: `false`."""
    trainer_cls: str | None = planned(min_length=1)
    """Dotted path of a trainer class of one's own. Default: the method's trainer."""

    use_ray: bool | None = planned(default=False)
    """Start the processes with Ray Train. Default: `false`."""
    ray_run_name: str | None = planned(min_length=1)
    """Name of the run in Ray. Default: not set."""
    ray_num_workers: int | None = planned(default=1, ge=1)
    """Processes that Ray starts. Default: `1`."""
    resources_per_worker: dict[str, Annotated[float, limits(ge=0)]] | None = planned(
        default={"GPU": 1}
    )
    """Resources, by Ray's names, that each of these processes gets. Default: `{"GPU": 1}`."""
    local_rank: int | None = planned(ge=-1)
    """Number of the process on its machine. Launchers set it, recipes should not. Default: the launcher's."""
    world_size: int | None = planned(ge=1)
    """Processes of the run. Launchers set it, recipes should not. Default: the launcher's."""
    device: Annotated[int, limits(ge=0)] | str | None = planned()
    """Device of this process. Default: the process's own GPU."""

    gradio_title: str | None = planned()
    """Web page for trying a model: its title. Default: not set."""
    gradio_share: bool | None = planned(false_is_off=False)
    """Web page: reachable from outside through Gradio's tunnel. Default: not set."""
    gradio_server_name: str | None = planned(min_length=1)
    """Web page: address that it listens on. Default: not set."""
    gradio_server_port: int | None = planned(ge=1, le=65535)
    """Web page: port that it listens on. Default: a free one."""
    gradio_max_new_tokens: int | None = planned(ge=1)
    """Web page: longest answer, in tokens. Default: not set."""
    gradio_temperature: float | None = planned(ge=0)
    """Web page: temperature for sampling. Default: not set."""

    total_num_tokens: int | None = planned(ge=0)
    """Tokens of the training data, so that packing need not count them. Default: they are counted."""
    total_supervised_tokens: int | None = planned(ge=0)
    """Tokens of the training data that are trained. Default: they are counted."""
    is_preprocess: bool | None = planned()
    """Set by Axolotl's own `preprocess` command; recipes should not. Default: not set."""
    preprocess_iterable: bool | None = planned()
    """Nothing reads it in Axolotl 0.18. Default: not set."""
    axolotl_config_path: str | None = planned()
    """Set by Axolotl to the file that it read; recipes should not. Default: not set."""
