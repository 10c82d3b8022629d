"""Reads a page as strictly as no browser does, for tests of what is on it."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}
# Where HTML's content model forbids blocks; a browser would close the paragraph and break the nesting.
PHRASING_ONLY = {"p", "h1", "h2", "h3", "dt", "summary", "figcaption", "caption", "span"}
BLOCKS = {"p", "div", "table", "section", "ul", "ol", "dl", "figure", "details", "article", "h1", "h2", "h3", "pre"}


class Element:
    """A node of a page, with its text."""

    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    def text(self):
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag=None, **attributes):
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and all(child.attributes.get(n) == v for n, v in wanted.items()):
                    yield child
                yield from child.all(tag, **attributes)

    def ancestors(self):
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


class Reader(HTMLParser):
    """Reads a page strictly: what is opened must be closed, in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.current = Element("", {}, None)

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        inside = {self.current.tag, *(node.tag for node in self.current.ancestors())}
        assert not (tag in BLOCKS and inside & PHRASING_ONLY), f"<{tag}> inside {inside & PHRASING_ONLY}"
        element = Element(tag, dict(attributes), self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag, attributes):
        assert any(node.tag == "svg" for node in (self.current, *self.current.ancestors())), f"<{tag}/> outside svg"
        self.current.children.append(Element(tag, dict(attributes), self.current))

    def handle_endtag(self, tag):
        assert tag == self.current.tag, f"</{tag}> where </{self.current.tag}> was due"
        self.current = self.current.parent

    def handle_data(self, data):
        self.current.children.append(data)


def parsed(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.current is reader.root, f"<{reader.current.tag}> was never closed"
    return reader.root
