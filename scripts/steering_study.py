"""Puts a concept study on record: what every method of steering bought on pico, and its picture.

    python train.py name=demo
    dictlearn features run=runs/demo output_scores=true
    dictlearn steer run=runs/demo study=docstrings
    python scripts/steering_study.py runs/demo/studies/docstrings

Appends to benchmarks/results/steering.json, of which `make docs` makes the table of docs/steering.md,
and puts the picture into docs/img/.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

PACKAGES = ("torch", "transformers", "dictlearn-lm")
PICTURES = Path(__file__).resolve().parents[1] / "docs" / "img"


def main(folder: Path) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    record = {"study": study, "versions": results.versions(PACKAGES)}
    print(f"appended to {results.append('steering', record)}")
    shutil.copy(folder / "pareto.png", PICTURES / f"steering_{study['name']}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
