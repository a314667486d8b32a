"""Whether selection in low precision is that of float32, and how many rows that takes again in full.

    python scripts/selection_exactness.py

Trains a TopK dictionary on pico's middle layer for a few hundred steps, selects the features of held-out
tokens with the matmul in bfloat16, in float16 and in 16-bit fixed point, and compares with float32: rows
whose set differs by more than entries equal to within float32's own rounding. Beside it, for each number
of candidates, the share of rows that the certificate would not settle, there and on Gaussian activations;
and for 8-bit floats, which is why there is no such selection. Fixed point settles every row, looking at
as many entries as it takes: how many that is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from dictlearn_kernels import bounds, fixed_point, tiles, topk_encode
from torch import Tensor

from dictlearn import config
from dictlearn.types import Batch
from dictlearn.verbs.build import build_dictionary, build_model, build_source, build_training

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import results

CANDIDATES = (34, 36, 40, 48, 56, 64, 72, 96, 128)
ROWS = 1024  # in a batch
TIE = 1e-5  # of a row's largest entry: what two orders of summation in float32 may differ by


Operands = tuple[Tensor, Tensor, Tensor]  # x [R, D], W [C, D], b [C]


def trained(steps: int, tokens: int) -> Operands:
    """What the encoder of a trained dictionary reads on held-out tokens, and its weights."""
    cfg = config.compose("train", ["trainer=cpu", f"steps={steps}"])
    lm = build_model(cfg)
    assert lm is not None
    torch.manual_seed(cfg.seed)
    dictionary = build_dictionary(cfg, lm.info)
    trainee = build_training(cfg, dictionary).trainee()
    source = build_source(cfg, lm, dictionary, "train")
    trainee.begin(source.sample(8192))
    optimiser = torch.optim.Adam(trainee.parameters(), lr=2e-3, fused=True)
    for step in range(steps):
        trainee(source.next_batch(), step / steps).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        trainee.dictionary.after_step()
        trainee.after_step(True)
    held_out = build_source(cfg, lm, dictionary, "eval")
    with torch.no_grad():
        rows: list[Tensor] = []
        while sum(map(len, rows)) < tokens:
            batch: Batch = held_out.next_batch()
            rows.append(dictionary.read(trainee.normaliser(batch)[0])[:, 0].clone())
        encoder = dictionary.encoder
        return torch.cat(rows)[:tokens], encoder.W_enc[0].detach(), encoder.b_enc[0].detach()


def gaussian(rows: int, width: int, columns: int) -> Operands:
    W_CD = torch.nn.functional.normalize(torch.randn(columns, width), dim=1)
    return torch.randn(rows, width), W_CD, torch.zeros(columns)


def exactness(operands: Operands, k: int, dtype: torch.dtype) -> dict[str, int | float]:
    """Rows whose selection differs from float32's, with the certificate and without."""
    x_RD, W_CD, b_C = operands
    topk_encode.forget()
    differ = tied = uncertified = 0
    for x in x_RD.split(ROWS):
        chosen, plain = torch.zeros(2, len(x), len(W_CD), dtype=torch.bool)
        for mask, (starts, columns, _) in (
            (chosen, topk_encode.topk_encode(x, W_CD, b_C, k, dtype)),
            (plain, topk_encode.topk_encode(x, W_CD, b_C, k)),
        ):
            mask[torch.arange(len(x)).repeat_interleave(starts.diff()), columns] = True
        other = (chosen != plain).any(1)
        pre = x[other].double() @ W_CD.double().T + b_C.double()
        in_one = torch.where(chosen[other] != plain[other], pre, torch.nan)
        spread = in_one.nan_to_num(nan=-torch.inf).amax(1) - in_one.nan_to_num(nan=torch.inf).amin(
            1
        )
        ties = spread < TIE * pre.amax(1)
        tied += int(ties.sum())
        differ += int((~ties).sum())
        rough = low(x, dtype) @ low(W_CD, dtype).T + b_C
        rough = (rough.to(dtype) if dtype.is_floating_point else rough).topk(k).indices
        positive = torch.zeros_like(plain).scatter_(1, rough, True) & (x @ W_CD.T + b_C > 0)
        uncertified += int((positive != plain).any(1).sum())
    return {
        "rows": len(x_RD),
        "rows_that_differ": differ,
        "rows_tied_in_float32": tied,
        "rows_flagged": topk_encode.flagged()[0],
        "rows_that_differ_by_rough_values": uncertified,
    }


def low(x_RD: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of numbers in a lower precision."""
    if dtype.is_floating_point:
        return x_RD.to(dtype).float()
    unit_R1 = x_RD.norm(dim=1, keepdim=True) / fixed_point.LARGEST
    return (x_RD / unit_R1).round() * unit_R1


def contenders(operands: Operands, k: int) -> dict[str, float]:
    """How many entries of a row fixed point can't exclude from its k largest, of which k are."""
    of = fixed_point.bounded(*operands)
    assert of is not None
    counts = []
    for strip in tiles.strips(of, 0, of.n_tiles):
        upper_RC = torch.from_numpy(strip.matrix())
        spread_R = torch.from_numpy(of.spread_R[strip.rows])
        least_R = upper_RC.topk(k, dim=1).values[:, -1] - spread_R
        counts.append((upper_RC >= least_R[:, None]).sum(1))
    per_row = torch.cat(counts).double()
    return {"mean": float(per_row.mean()), "most": float(per_row.max())}


def flagged_by_candidates(operands: Operands, k: int, dtype: torch.dtype) -> dict[str, float]:
    """Percent of rows that the certificate doesn't settle, for each number of candidates."""
    x_RD, W_CD, b_C = operands
    kth_R = torch.addmm(b_C, x_RD, W_CD.T).topk(k, dim=1).values[:, -1].clamp(min=0)
    if dtype.itemsize > 1:
        upper_RC = bounds.upper_bounds(x_RD, W_CD, b_C, dtype)
    else:
        upper_RC = scaled_upper_bounds(x_RD, W_CD, b_C, dtype)
    left_RM = upper_RC.topk(max(CANDIDATES) + 1, dim=1).values
    return {str(m): 100 * float((left_RM[:, m] > kth_R).double().mean()) for m in CANDIDATES}


def scaled_upper_bounds(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bounds for 8-bit floats with a scale a row, but for the error of summation."""
    largest = torch.finfo(dtype).max
    x_scale, W_scale = (t.abs().amax(1, keepdim=True) / largest for t in (x_RD, W_CD))
    x_low = (x_RD / x_scale).to(dtype).float() * x_scale
    W_low = (W_CD / W_scale).to(dtype).float() * W_scale
    x_error, W_error = (x_RD - x_low).norm(dim=1), (W_CD - W_low).norm(dim=1)
    over_RC = x_error[:, None] * W_CD.norm(dim=1) + x_low.norm(dim=1)[:, None] * W_error
    return torch.addmm(b_C, x_low, W_low.T) + over_RC


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pico = trained(options.steps, options.tokens)
    record: dict[str, object] = {
        "versions": results.versions(("torch",)),
        **{"steps": options.steps, "k": options.k, "n_features": len(pico[1])},
    }
    fixed = (fixed_point.DTYPE,) if fixed_point.available() else ()
    for dtype in (torch.bfloat16, torch.float16, *fixed):
        found = exactness(pico, options.k, dtype)
        record[f"pico, {str(dtype)[6:]}"] = found
        print(dtype, found, flush=True)
    sampled = {
        "pico": (pico[0][: 8 * ROWS], *pico[1:]),
        "gaussian 768 x 8192": gaussian(ROWS, 768, 8192),
    }
    for name, operands in sampled.items():
        if fixed:
            record[f"contenders of a row, {name}, int16"] = contenders(operands, options.k)
            print(name, fixed[0], record[f"contenders of a row, {name}, int16"], flush=True)
        for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
            share = flagged_by_candidates(operands, options.k, dtype)
            record[f"percent flagged by candidates, {name}, {str(dtype)[6:]}"] = share
            print(name, dtype, {m: round(value, 3) for m, value in share.items()}, flush=True)
    print(f"appended to {results.append('selection', record, options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
