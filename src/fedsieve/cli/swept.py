"""Runs many experiments with progress bars, for ``sweep`` and ``reproduce``."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedsieve.cli.options import err, torch_device

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment


def swept(
    experiments: "list[Experiment]",
    names: dict[str, str],
    directory: Path,
    jobs: int,
    ray: str | None,
    device: str,
    quiet: bool,
    tensorboard: bool,
) -> dict[str, str]:
    """Run experiments with progress bars.

    Args:
        experiments: The cells of a grid.
        names: Their names in progress bars, by key.
        directory: Folder of their run directories.
        jobs: Number of worker processes.
        ray: Address of a Ray cluster to use instead of worker processes, or None.
        device: Name of the device, or ``auto``.
        quiet: Don't show progress.
        tensorboard: Write scalars for TensorBoard.

    Returns:
        By key, ``""`` for cells that are finished, and the error for the others.
    """
    from fedsieve.cli.progress import SweepProgress
    from fedsieve.data.store import data_folder
    from fedsieve.report.tensorboard import TensorBoard
    from fedsieve.runs.sweep import sweep as run_all

    where = str(torch_device(device))
    displays = [TensorBoard] if tensorboard else []
    if tensorboard:
        TensorBoard(directory)  # if it can't be imported, fail before any cell is run
    try:
        with SweepProgress(err, {e.key: e.rounds for e in experiments}, names, hidden=quiet) as progress:
            if ray is not None:
                from fedsieve.runs.ray_cluster import sweep_on_ray

                return sweep_on_ray(experiments, directory, data_folder(), where, ray, progress.show, displays)
            return run_all(experiments, directory, data_folder(), where, jobs, progress.show, displays)
    except KeyboardInterrupt:
        err.print(f"interrupted; the same command continues from {directory}", soft_wrap=True)
        raise
