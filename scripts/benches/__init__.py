"""What scripts/bench.py is made of.

cases.py        the sizes that are timed, by name, and the bars that are set for them
machine.py      how busy the machine is, what it can do at best, what memory a process had
floor.py        the time below which no step of a case can come, on a given machine
dense.py        the same dictionaries as one writes them without sparse kernels
contestants.py  everybody's whole training step: dictlearn, dense autograd, SAELens, sparsify
steps.py        races of steps         ops.py     races of single operations
curves.py       cost against size
draw.py         pictures, page.py tables of what is on record, for the documents
"""
