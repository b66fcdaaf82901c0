"""Reports: one self-contained HTML page; pictures as data, charts as SVG, no script, nothing fetched.

`page` puts sections into the template, `parts` makes tables, charts and rows of pictures, `classifier` writes the page about a
classifier from them.
"""

from .page import Section, write_page
from .parts import bar_chart, data_uri, picture_grid, table

__all__ = ["Section", "bar_chart", "data_uri", "picture_grid", "table", "write_page"]
