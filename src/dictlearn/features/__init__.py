"""What held-out text and the weights say of every feature: one pass, in bounded memory.

`dictlearn.features(run)` gives what was found: see dictlearn.api.features and docs/python.md.
"""

import sys

from dictlearn import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
