"""One thing that was looked at before any number: what was found, and what was expected."""

from export.frozen import Frozen


class Finding(Frozen):
    """Whether an artifact is in one respect what its reference is; one that is not ok fails its subject."""

    what: str
    subject: str
    ok: bool
    found: str
    expected: str
    note: str = ""
