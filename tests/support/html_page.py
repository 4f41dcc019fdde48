"""A parsed HTML page: elements with their attributes and text, and tables by caption."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Element:
    """An element with its attributes and children."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        whole = "".join(child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(whole.replace("\u00a0", " ").split())

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def all(self, tag: str = "", css: str = "") -> list["Element"]:
        """Descendants by tag and class, in document order."""
        descendants = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("", child.tag) and (not css or css in child.classes):
                    descendants.append(child)
                descendants += child.all(tag, css)
        return descendants

    def one(self, tag: str = "", css: str = "") -> "Element":
        """The only such descendant; fails unless there is exactly one."""
        (element,) = self.all(tag, css)
        return element


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.current = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.current.tag == tag, f"</{tag}> closes <{self.current.tag}>"
        assert self.current.parent, f"</{tag}> closes nothing"
        self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def parse(text: str) -> Element:
    """The root of the page; fails unless elements are closed in the right order."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.current is parser.root, f"<{parser.current.tag}> is not closed"
    return parser.root


def table(page: Element, caption: str) -> dict[tuple[str, str], Element]:
    """Cells by (row header, column header) of the table with this caption."""
    (element,) = [t for t in page.all("table") if t.one("caption").text == caption]
    head, *rows = element.all("tr")
    columns = [th.text for th in head.all("th")][1:]
    cells = {}
    for row in rows:
        name = row.one("th").text
        for column, cell in zip(columns, row.all("td"), strict=True):
            cells[name, column] = cell
    return cells
