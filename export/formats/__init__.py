"""One file per export format; the file's name is the word in the recipe.

What all of them share is named here: the file it stands in begins with an underscore because every other file of this
package is a format, or a part of one.
"""

from export.formats._base import ExportRows, Format, RowsWanted

__all__ = ["ExportRows", "Format", "RowsWanted"]
