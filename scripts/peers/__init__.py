"""The other trainers, each behind the same small interface, for scripts/compare_peers.py.

recipe.py       what is equal for everybody
activations.py  the same activations in the same order, from a file
ours.py  saelens.py  sparsify.py    one trainer each
measure.py      held-out figures, by one definition, of anybody's dictionary
speed.py        whole training steps, interleaved in one process
results.py      figures to benchmarks/results/, with machine, versions and date
"""
