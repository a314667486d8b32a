"""python train.py [group=option ...] [key=value ...] trains a dictionary; --help lists them."""

import sys
from pathlib import Path

# transformers imports a package called `kernels`: the folder of that name here must not be it.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from dictlearn.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main("train")  # in the place of @hydra.main, which fish looks for before it completes a script
