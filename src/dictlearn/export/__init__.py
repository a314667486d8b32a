"""Dictionaries in other tools' formats: one file each, and one yaml each in conf/format."""
