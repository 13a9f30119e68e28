"""Keys about trackers: where metrics of the run are sent."""

from typing import Any, Literal

from ft.recipes.schema.base import Section, planned


class TrackingKeys(Section):
    """Services that show the run while it goes on."""

    use_wandb: bool | None = planned()
    """Send metrics to Weights & Biases. Default: if `wandb_project` is set."""
    wandb_project: str | None = planned(min_length=1)
    """Project in Weights & Biases. Default: not set."""
    wandb_entity: str | None = planned(min_length=1)
    """Team or user that the project belongs to. Default: the account's own."""
    wandb_name: str | None = planned(min_length=1)
    """Name of the run. Default: `wandb_run_id` if that is set, else a name that the service makes up."""
    wandb_run_id: str | None = planned(min_length=1)
    """Id of the run; the same id again goes on with that run. Default: a new one."""
    wandb_mode: Literal["online", "offline", "disabled", "shared", "dryrun", "run"] | None = (
        planned()
    )
    """`offline` keeps everything in local files, `disabled` turns the tracker off.
    Default: not set, which means online."""
    wandb_watch: Literal["gradients", "parameters", "all", "false"] | None = planned()
    """Histograms of gradients or weights that are logged too. Default: not set, which means none."""
    wandb_log_model: Literal["checkpoint", "end", "true", "false"] | None = planned()
    """Upload the model with every checkpoint, or once at the end. Default: not set, which means never."""

    use_mlflow: bool | None = planned()
    """Send metrics to MLflow. Default: if `mlflow_experiment_name` is set."""
    mlflow_tracking_uri: str | None = planned(min_length=1)
    """Address of the MLflow server. Default: MLflow's own, local files."""
    mlflow_experiment_name: str | None = planned(min_length=1)
    """Experiment that the run belongs to. Default: not set."""
    mlflow_run_name: str | None = planned(min_length=1)
    """Name of the run. Default: not set."""
    hf_mlflow_log_artifacts: bool | None = planned()
    """Copy every checkpoint to MLflow's artifact store. Default: off."""

    use_comet: bool | None = planned()
    """Send metrics to Comet. Default: if a key of Comet is set."""
    comet_api_key: str | None = planned(min_length=1)
    """Secret for Comet. It is better kept in the environment as `COMET_API_KEY`. Default: not set."""
    comet_workspace: str | None = planned(min_length=1)
    """Workspace in Comet. Default: the account's own."""
    comet_project_name: str | None = planned(min_length=1)
    """Project in Comet. Default: Comet's catch-all project."""
    comet_experiment_key: str | None = planned(min_length=1)
    """Id of the experiment, to go on with one or to choose the id of a new one. Default: a random one."""
    comet_mode: Literal["get_or_create", "get", "create"] | None = planned(default="get_or_create")
    """Go on with an experiment, begin a new one, or whichever fits. Default: `get_or_create`."""
    comet_online: bool | None = planned(default=True)
    """Send metrics to the server; `false` keeps them in local files. Default: `true`."""
    comet_experiment_config: dict[str, Any] | None = planned()
    """More options of Comet's experiment. Default: none."""

    use_trackio: bool | None = planned()
    """Log metrics with Trackio. Default: if `trackio_project_name` is set."""
    trackio_project_name: str | None = planned(min_length=1)
    """Project in Trackio. Default: not set."""
    trackio_run_name: str | None = planned(min_length=1)
    """Name of the run. Default: not set."""
    trackio_space_id: str | None = planned(min_length=1)
    """Hugging Face Space that shows the dashboard. Default: it stays on this machine."""

    use_tensorboard: bool | None = planned()
    """Write event files for TensorBoard. Default: off."""

    use_otel_metrics: bool | None = planned(default=False)
    """Offer metrics to Prometheus through OpenTelemetry while training. Default: `false`."""
    otel_metrics_host: str | None = planned(default="localhost", min_length=1)
    """Address that the metrics server listens on. Default: `localhost`."""
    otel_metrics_port: int | None = planned(default=8000, ge=1, le=65535)
    """Port that the metrics server listens on. Default: `8000`."""
