"""Training: one LightningModule, what it optimises, and the callbacks around it.

`dictlearn.train(...)` trains from Python: see dictlearn.api.train and docs/python.md.
"""

import sys

from dictlearn import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
