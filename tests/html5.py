"""What a test asks of an HTML page, read by the standard library's parser."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page that was read.

    Attributes:
        ids: Every id. references: Every id that something points to.
        pictures: The source of every image.
        unclosed: Elements that were not closed in their order.
        without_text: Images and charts without a text alternative.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.pictures: list[str] = []
        self.unclosed: list[str] = []
        self.without_text = 0
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One more element begins."""
        found = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        self._read(tag, found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content."""
        self._read(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        """One ends."""
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unclosed.append(f"/{tag}")

    def _read(self, tag: str, found: dict[str, str | None]) -> None:
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.references += str(found.get("aria-labelledby") or "").split()
        href = str(found.get("href") or "")
        if href.startswith("#"):
            self.references.append(href[1:])
        if tag == "img":
            self.pictures.append(str(found.get("src")))
            self.without_text += not found.get("alt")
        if tag == "svg" and not (found.get("aria-labelledby") or found.get("aria-hidden")):
            self.without_text += 1
