"""Checkpoints: safetensors and JSON, committed atomically, resumed exactly."""
