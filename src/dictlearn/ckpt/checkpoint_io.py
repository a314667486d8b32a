"""Lightning's checkpoints as committed folders of safetensors and JSON.

    step-4000/  tensors.safetensors  state.json  config.json  contents.json
        environment.json  manifest.json

`Trainer(plugins=[DictlearnCheckpointIO(config)])`, then `trainer.save_checkpoint(folder)` and
`trainer.fit(..., ckpt_path=folder)` work as usual.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from dictlearn.ckpt import commit
from dictlearn.ckpt.codec import read_state, write_state
from dictlearn.ckpt.environment import environment
from dictlearn.ckpt.resume import CONFIG
from dictlearn.disk.strict_json import read_json
from dictlearn.sparsity import ranks

ENVIRONMENT = "environment.json"
CONTENTS = "contents.json"
VERSION = "pytorch-lightning_version"

State = dict[str, Any]


@final
class DictlearnCheckpointIO(CheckpointIO):
    """Saves atomically, loads only folders that verify, never unpickles.

    `config`, the run's resolved config as plain containers, is stored beside the state. So is
    `contents`: fingerprints of the models and texts that the config's paths refer to. `on_load` may
    change a state that was read before Lightning gets it. `verified` is a folder that the first
    process has verified already. Of several processes only the first verifies, and all load its folder;
    its tensors are mapped into memory, so that the processes of a machine share them.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        on_load: Callable[[State], State] | None = None,
        contents: Mapping[str, str] | None = None,
        verified: Path | None = None,
    ):
        self._config = json.dumps(config or {}, indent=1)
        self._contents = json.dumps(contents or {}, indent=1)
        self._on_load, self._verified = on_load, verified

    def save_checkpoint(
        self, checkpoint: State, path: str | Path, storage_options: Any = None
    ) -> None:
        """Commits `checkpoint` to the folder `path`, replacing an earlier one.

        Raises:
            SaveError: the disk is full, broken or read-only; nothing was changed.
            TypeError: an entry could not be read back; the message names it.
        """

        def write(folder: Path) -> None:
            write_state(folder, checkpoint)
            (folder / CONFIG).write_text(self._config, encoding="utf-8")
            (folder / CONTENTS).write_text(self._contents, encoding="utf-8")
            (folder / ENVIRONMENT).write_text(json.dumps(environment(), indent=1), encoding="utf-8")

        details = {
            "step": checkpoint["global_step"],
            "git": environment()["git"],
            "config_sha256": hashlib.sha256(self._config.encode()).hexdigest(),
        }
        commit.commit(Path(path), write, sort="a checkpoint", details=details)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> State:
        """The state in the folder `path`, on the CPU; Lightning moves it to its devices.

        Raises:
            ValueError: one sentence, if the folder differs from what was saved.
        """
        path = self._intact(Path(path))
        state = read_state(path)
        if type(state.get(VERSION)) is not str:  # Lightning reads it without a check
            raise ValueError(f"{path}: its state has no {VERSION}")
        return self._on_load(state) if self._on_load else state

    def _intact(self, path: Path) -> Path:
        """The first process's folder, on all processes, once that one has verified it."""
        verdict: list[str | None] = [str(path), None]
        if ranks.rank() == 0 and path != self._verified:
            try:
                commit.verify(path)
            except ValueError as error:
                verdict[1] = str(error)
        if ranks.several():
            torch.distributed.broadcast_object_list(verdict)
        found, damage = verdict
        if damage is not None:
            raise ValueError(damage)
        return Path(str(found))

    def remove_checkpoint(self, path: str | Path) -> None:
        commit.delete(Path(path))


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config of the run that saved this checkpoint.

    Raises:
        ValueError: one sentence naming the file.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} is not readable: want an object")
    return config


def read_contents(folder: Path) -> dict[str, str]:
    """The fingerprints that were saved with a checkpoint; empty if it has none.

    Raises:
        ValueError: one sentence naming the file.
    """
    path = folder / CONTENTS
    contents = read_json(path) if path.exists() else {}
    if not isinstance(contents, dict) or not all(type(v) is str for v in contents.values()):
        raise ValueError(f"{path} is not readable: want an object of texts")
    return contents
