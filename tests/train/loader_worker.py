"""One of two processes that read one stream: `loader_worker.py <folder> <rank>`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.train.loader import SourceLoader


def loader() -> SourceLoader:
    return SourceLoader(SyntheticSource(batch_tokens=96, seed=0, n_features=8, width=4), steps=9)


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    straight, resumed = loader(), loader()
    batches = iter(straight)
    rows = [next(batches).x_NSD for _ in range(3)]
    state = straight.state_dict()
    resumed.load_state_dict(state)
    for there, batch in zip(batches, resumed, strict=False):
        rows.append(there.x_NSD)
        assert torch.equal(batch.x_NSD, rows[-1])
    result = {"sources": state["sources"], "rows": torch.cat(rows)[:, 0, 0].tolist()}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
