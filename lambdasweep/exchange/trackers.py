"""This module logs a run to W&B, MLflow or trackio. Each is an optional extra, and is imported where it is used.

A tracker takes its own settings from the environment, as its users know them: `WANDB_MODE`, `WANDB_PROJECT`,
`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `TRACKIO_DIR`, and so on. lambdasweep takes no credentials.
"""

import csv
import importlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import InputError, LambdasweepError
from lambdasweep.exchange.logged import LAM, Logged

PROJECT = "lambdasweep"


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed, before anything is computed.

    Raises:
        InputError: there is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise InputError(f"--log {name} is unknown: give {', '.join(TRACKERS)}")
    _module(name)


def log_to(name: str, logged: Logged) -> str:
    """Log a run to a tracker and return the words that say where it is.

    Raises:
        InputError: there is no such tracker, or its package is not installed.
        LambdasweepError: the tracker failed; what it has of the run may be incomplete.
    """
    check_tracker(name)
    with tempfile.TemporaryDirectory() as folder:
        for file, data in logged.files.items():
            path = Path(folder) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            return TRACKERS[name](_module(name), logged, Path(folder))
        except Exception as error:  # a tracker's client may raise anything: network, credentials, disk
            reason = (str(error).strip().splitlines() or [""])[0]
            raise LambdasweepError(
                f"{name} did not take the whole run ({type(error).__name__}: {reason}): what it has of it may be "
                "incomplete. The report is written; mend the cause, delete that run there, and log it again"
            ) from error


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"--log {name} needs the package {name}: install lambdasweep[{name}]") from None


def _wandb(wandb: Any, logged: Logged, folder: Path) -> str:
    """Log to W&B, where λ is the x axis of every curve; the project is `lambdasweep` unless WANDB_PROJECT names another."""
    run = wandb.init(**_project("WANDB_PROJECT"), name=logged.name, config=dict(logged.settings), reinit="create_new")
    try:
        axis = LAM if logged.unit else "step"
        run.define_metric(axis)
        run.define_metric("*", step_metric=axis)
        for step in logged.steps:
            run.log({**step.values, **({} if logged.unit else {"step": step.number, "point": step.lam})})
        header, rows = _table(logged)
        run.log({"metrics": wandb.Table(columns=header, data=rows)})
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("figures/*.png"))})
        artifact = wandb.Artifact("report", type="report")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)
        run.summary.update(dict(logged.summary))
    except BaseException:
        run.finish(exit_code=1)  # W&B then shows the run as failed
        raise
    run.finish()
    return str(run.url or run.dir)


def _mlflow(mlflow: Any, logged: Logged, folder: Path) -> str:
    """Log to MLflow, whose steps are whole numbers: a step is λ divided by `lambda_step`, a tag of the run."""
    import os

    if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
        mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=logged.name) as run:
        mlflow.log_params({name.replace(" ", "."): value for name, value in logged.settings.items()})
        mlflow.set_tags({"lambda_step": logged.unit} if logged.unit else {})
        for step in logged.steps:
            mlflow.log_metrics(dict(step.values), step=step.number)
        mlflow.set_tags({name.replace("/", "."): value for name, value in logged.summary.items()})
        mlflow.log_artifacts(str(folder), "report")
    return f"{mlflow.get_tracking_uri()} run {run.info.run_id}"


def _trackio(trackio: Any, logged: Logged, folder: Path) -> str:
    """Log to trackio, whose steps are those of MLflow; λ is logged too, and can be chosen as the x axis."""
    settings = dict(logged.settings) | ({"lambda_step": logged.unit} if logged.unit else {}) | dict(logged.summary)
    run = trackio.init(project=PROJECT, name=logged.name, config=settings)
    for step in logged.steps:
        trackio.log(dict(step.values), step=step.number)
    for path in sorted(folder.glob("figures/*.png")):
        trackio.log({f"figures/{path.stem}": trackio.Image(str(path))})
    trackio.finish()
    return f"project {PROJECT}, run {run.name}"


def _project(variable: str) -> dict[str, str]:
    import os

    return {} if os.environ.get(variable) else {"project": PROJECT}


def _table(logged: Logged) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(io.StringIO(logged.files["metrics.csv"].decode()))
    return header, rows


TRACKERS: dict[str, Callable[[Any, Logged, Path], str]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
