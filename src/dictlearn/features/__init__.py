"""Gathers statistics, examples and effects of every feature in one pass, in bounded memory.

`dictlearn.features(run)` reads them: see dictlearn.api.features and docs/python.md.
"""

import sys

from dictlearn import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
