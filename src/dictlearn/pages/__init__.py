"""What sites that a browser opens from the disk have in common: records of features, scripts, a style.

A site is a page, and a folder beside it with the files of site/ here, those of its own, and its data
in the form of scripts (scripts.py). Nothing is fetched, and no text from data is ever markup.
"""
