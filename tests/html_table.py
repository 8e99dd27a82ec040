"""Tables of a page of ours, read with Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser


class Tables(HTMLParser):
    """Reads every table of a page.

    Attributes:
      tables: of each, its rows; of each row, its cells as (attributes, text).
      links: the targets of all links, in order.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[dict[str, str | None], str]]]] = []
        self.links: list[str | None] = []
        self._cell: list[str] | None = None
        self._attributes: dict[str, str | None] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell, self._attributes = [], dict(attrs)
        elif tag == "a":
            self.links.append(dict(attrs).get("href"))

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append((self._attributes, "".join(self._cell)))
            self._cell = None
