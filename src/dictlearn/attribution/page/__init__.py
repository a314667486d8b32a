"""Pages that show attribution graphs: plain files that a browser opens from the disk."""

from dictlearn.attribution.page.features import Features
from dictlearn.attribution.page.listing import write_index
from dictlearn.attribution.page.write import check_page_replaceable, write_page

__all__ = ["Features", "check_page_replaceable", "write_index", "write_page"]
