"""Objective terms, one file each: pure functions of a step's forward pass, weighted and added."""
