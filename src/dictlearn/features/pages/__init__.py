"""A site for browsing a feature store, of plain files that a browser opens from the disk."""

from dictlearn.features.pages.write import check_pages_replaceable, write_pages

__all__ = ["check_pages_replaceable", "write_pages"]
