"""Next-token logits a few positions at a time; see `dictlearn.lm.readout`."""

from dictlearn.lm.readout import Readout, has_head

__all__ = ["Readout", "has_head"]
