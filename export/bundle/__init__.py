"""A bundle for a device: one GGUF file and all that it needs there, with the certificate of what was measured.

`making` puts it together; each other module makes one part. What ships as it is lies in `device`.
"""

from export.bundle.known import KnownValues
from export.bundle.making import ROWS, Bundle, BundleSource, Row, Runtime, make
from export.bundle.packing import damaged, unpack

__all__ = ["ROWS", "Bundle", "BundleSource", "KnownValues", "Row", "Runtime", "damaged", "make", "unpack"]
