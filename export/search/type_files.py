"""Every tensor in every candidate type, as llama.cpp quantizes it, and files that are put together from them.

llama.cpp quantizes whole files only. So the 16-bit file is quantized once to each type, tensor by tensor where a row
divides into the type's blocks, and a mix is made by copying bytes: seconds, where quantizing takes minutes.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from export.artifacts import Fallback
from export.importance import Importances
from export.readers.gguf import GgufContent, StoredTensor, block_size, padded, read_gguf, read_header

# (source, file type, target, importance data, types by tensor): see `export.formats`, which hands it in
Quantize = Callable[[Path, str, Path, Importances | None, Mapping[str, str]], tuple[Fallback, ...]]

# What tensors that do not divide into a type's blocks are stored in meanwhile; made fast, and looked at by nobody.
_FILLER = "q8_0"


class TypeFiles:
    """Tensors of the 16-bit file `source` by type; a type's file is made in `folder` when it is first asked for."""

    def __init__(
        self, source: Path, names: Iterable[str], importances: Importances | None, quantize: Quantize, folder: Path
    ) -> None:
        """`names` are the tensors that llama.cpp quantizes."""
        self.content: GgufContent = read_gguf(source)
        self.plain = {tensor.name: tensor for tensor in self.content.tensors}
        self.names = tuple(names)
        self._alignment = read_header(source).alignment
        self._header_bytes = 0
        self._source, self._importances, self._quantize, self._folder = source, importances, quantize, folder
        self._made: dict[str, dict[str, StoredTensor]] = {}

    def fits(self, name: str, stored_as: str) -> bool:
        """Whether the tensor's rows divide into the type's blocks."""
        return self.plain[name].row % block_size(stored_as)[0] == 0

    def tensor(self, name: str, stored_as: str) -> StoredTensor:
        """Where the tensor lies in that type. Raises what quantizing raises."""
        if stored_as == self.plain[name].stored_as:
            return self.plain[name]
        return self._file(stored_as)[name]

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(tensor.weights for tensor in self.plain.values())

    def header_bytes(self) -> int:
        """The length of the header of a mix."""
        if not self._header_bytes:
            self._file(_FILLER)
            self._header_bytes = len(read_header(self._path(_FILLER)).content)
        return self._header_bytes

    def size_bytes(self, types: Mapping[str, str]) -> int:
        """The exact size of the file that `assemble` would write."""
        given = {name: types.get(name, self.plain[name].stored_as) for name in self.names}
        return self.rest_bytes() + sum(self.padded_bytes(name, stored_as) for name, stored_as in given.items())

    def rest_bytes(self) -> int:
        """What a mix takes besides: its header, and the tensors that llama.cpp does not quantize."""
        others = [tensor for name, tensor in self.plain.items() if name not in self.names]
        return self.header_bytes() + sum(padded(tensor.size_bytes, self._alignment) for tensor in others)

    def padded_bytes(self, name: str, stored_as: str) -> int:
        """What the tensor takes in that type, in a file."""
        return padded(self.tensor_bytes(name, stored_as), self._alignment)

    def tensor_bytes(self, name: str, stored_as: str) -> int:
        """What the tensor itself takes in that type."""
        block, block_bytes = block_size(stored_as)
        return self.plain[name].weights // block * block_bytes

    def assemble(self, types: Mapping[str, str], target: Path) -> None:
        """Writes the mix in which each tensor has the type it is given; those without one stay as they are."""
        self._file(_FILLER)
        chosen = {name: self.tensor(name, types.get(name, plain.stored_as)) for name, plain in self.plain.items()}
        assemble(self._path(_FILLER), chosen, target)

    def _path(self, stored_as: str) -> Path:
        return self._folder / f"{stored_as}.gguf"

    def _file(self, stored_as: str) -> dict[str, StoredTensor]:
        if stored_as not in self._made:
            path = self._path(stored_as)
            if not path.is_file():
                self._write(stored_as, path)
            self._made[stored_as] = {tensor.name: tensor for tensor in read_gguf(path).tensors}
        return self._made[stored_as]

    def _write(self, stored_as: str, path: Path) -> None:
        """Under its final name only when it is whole: a search that was killed goes on from what is there."""
        types = {}
        for name in self.names:
            if self.fits(name, stored_as):
                types[name] = stored_as
            elif self.fits(name, _FILLER):
                types[name] = _FILLER
        partial = path.with_suffix(".partial")
        self._quantize(self._source, _FILLER, partial, self._importances, types)
        partial.replace(path)


def assemble(donor: Path, tensors: Mapping[str, StoredTensor], target: Path) -> None:
    """Writes a GGUF file with the metadata of `donor` and, under its names, the bytes of `tensors`.

    Only types and offsets change in the header, which have a fixed width, so that it is copied and patched. Each
    tensor must have the shape that the donor's has. Raises OSError when the file cannot be written.
    """
    import gguf

    header = read_header(donor)
    patched, offset = bytearray(header.content), 0
    with target.open("wb") as file:
        file.seek(len(patched))
        for name, place in header.types_at.items():
            tensor = tensors[name]
            struct.pack_into("<IQ", patched, place, int(gguf.GGMLQuantizationType[tensor.stored_as.upper()]), offset)
            filled = padded(tensor.size_bytes, header.alignment)
            with tensor.path.open("rb") as source:
                source.seek(tensor.offset)
                file.write(source.read(tensor.size_bytes))
            file.write(bytes(filled - tensor.size_bytes))
            offset += filled
        file.seek(0)
        file.write(patched)
