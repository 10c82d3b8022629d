"""How a page of ours is set and drawn: one style sheet and one frame for all of them, charts, and texts side by side.

A page brings its own template, which extends `frame.html.jinja` and takes the macros of `marks.html.jinja`. What is on
it is not known here. A page needs no network and no script, and can be read without colour.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

_HERE = Path(__file__).parent


@cache
def template(path: Path) -> Template:
    """The page's template at `path`, set in the frame: it escapes text, and refuses a name that it is not given."""
    environment = Environment(
        loader=FileSystemLoader([path.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)


@cache
def style() -> str:
    """The style sheet of every page, for light and dark, narrow and wide, and for paper."""
    return (_HERE / "style.css").read_text(encoding="utf-8")
