"""Tests of this folder run where circuit-tracer is installed (`make test-attribution`), with what
dictlearn's own environment has trained and exported. Elsewhere there is nothing to collect."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("circuit_tracer") is None:
    collect_ignore_glob = ["test_*.py"]
