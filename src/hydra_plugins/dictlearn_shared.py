"""Hydra's launcher `shared`: hydra/launcher=shared. Hydra finds launchers in packages of this name only.

It is scanned each time that Hydra starts, so it imports nothing else. What it does is in
dictlearn/verbs/shared.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class SharedLauncher(Launcher):
    """Runs the jobs of a multirun that read the same activations in one process, on one forward pass."""

    def __init__(self, most: int) -> None:
        self.most = most

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        loader = self.hydra_context.config_loader
        jobs: list[tuple[DictConfig, Callable[[], JobReturn]]] = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            run = partial(
                run_job,
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            jobs.append((config, run))
        owner = getattr(self.task_function, "__self__", None)  # the command line's list of runs
        return import_module("dictlearn.verbs.shared").launched(owner, jobs, self.most)
