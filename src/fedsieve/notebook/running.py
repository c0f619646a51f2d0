"""Runs an experiment from Python, with the folders, the device and the data that the command line takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedsieve.cli.options import say, torch_device
from fedsieve.config.experiment import Experiment
from fedsieve.config.merging import merged
from fedsieve.config.yaml_files import read_yaml
from fedsieve.core.errors import ParameterError
from fedsieve.data.store import data_folder
from fedsieve.notebook.bar import progress as shown
from fedsieve.notebook.results import Result
from fedsieve.report.load import read
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.grid import several
from fedsieve.runs.run import run as run_experiment


def run(
    experiment: Experiment | Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str | torch.device = "auto",
    fresh: bool = False,
    checkpoint_every: float = 60.0,
    allow_imports: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Run an experiment: ``fedsieve.run(attack="min-max", defense="skymask", rounds=30)``.

    What is in the run directory is kept: the same call shows a finished run again, and goes on with one that was
    interrupted. A class of your own keeps its name when its code changes: use ``fresh`` then.

    Args:
        experiment: All settings; or those that are not the default, as a mapping or a YAML file.
        out: Run directory; by default ``runs/KEY``, KEY a hash of the settings.
        data: Folder of the datasets; by default FEDSIEVE_DATA, or a folder in the user's cache.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` takes a GPU if there is one.
        fresh: Replace the run in the run directory.
        checkpoint_every: Seconds between checkpoints.
        allow_imports: Load the classes that only the file names as ``module:Class``, which runs their code.
        progress: Show a progress bar.
        settings: Settings as in a YAML file, which replace those of ``experiment``: ``local={"steps": 5}``,
            ``attack={"name": "scaling", "factor": 5}``. A class can stand for a name: ``defense=MyDefense``.

    Raises:
        FedSieveError: If a setting is wrong, data are missing, or the directory holds another run.
    """
    e = _experiment(experiment, {key: _named(value) for key, value in settings.items()}, allow_imports)
    target = Path("runs") / e.key if out is None else Path(out)
    there = target.exists()

    def note(text: str) -> None:
        say(f"{text}; fresh=True runs it again" if "is finished" in text else text)

    with shown(e, RunDirectory(target), not progress) as show:
        run_experiment(
            e,
            out=target,
            data=data_folder() if data is None else Path(data),
            device=torch_device(str(device)),
            resume=not fresh,
            fresh=fresh,
            checkpoint_every=checkpoint_every,
            keep_records=False,
            on_note=note if there else None,  # that a new run has nothing to resume is no news
            on_round=show,
        )
    return Result(read(target))


def _experiment(
    given: Experiment | Mapping[str, Any] | str | Path | None, settings: dict[str, Any], allow_imports: bool
) -> Experiment:
    """The experiment that is to be run."""
    if isinstance(given, Experiment):
        if settings:
            raise ParameterError(f"an Experiment has all settings: make it with {', '.join(settings)}, too")
        return given
    if isinstance(given, Mapping):
        given, settings = None, merged(_named(given), settings)
    if lists := several({**(read_yaml(Path(given)) if given else {}), **settings}):
        raise ParameterError(f"a list for {', '.join(lists)} makes a grid: fedsieve sweep runs it")
    return Experiment.read(Path(given), settings, allow_imports) if given else Experiment.of(settings)


def _named(value: Any) -> Any:
    """Settings with the path of each class in its place.

    Raises:
        ParameterError: If a class can't be found under a path.
    """
    if isinstance(value, type):
        if "<locals>" in value.__qualname__:
            raise ParameterError(f"{value.__qualname__} is defined in a function; define it outside")
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, Mapping):
        return {key: _named(inner) for key, inner in value.items()}
    return [_named(inner) for inner in value] if isinstance(value, list | tuple) else value
