"""How a number of bytes is written for a reader."""


def gigabytes(size_bytes: float) -> str:
    """A size in GB, to two figures; a small one in MB."""
    if size_bytes < 95e6:
        return f"{size_bytes / 1e6:.0f} MB"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes < 10e9 else f"{size_bytes / 1e9:,.0f} GB"
