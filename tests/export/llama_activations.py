"""What llama.cpp itself multiplies by each weight: its own importance arithmetic, for tests of ours.

llama.cpp calls back after every operation it evaluates, as its tool for importance data relies on. The layout of what
it hands over is read from the header that the installed version brings along.
"""

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GGML_TYPE_F32 = 0


class Squares(NamedTuple):
    """The sum of squares of each input channel of a weight, and over how many rows."""

    sums: NDArray[np.float64]
    rows: int


def header() -> str:
    import llama_cpp

    return (Path(llama_cpp.__file__).parents[1] / "include" / "ggml.h").read_text(encoding="utf-8")


def tensor_type() -> type[ctypes.Structure]:
    """`struct ggml_tensor`, from the fields and sizes in the installed header."""
    text = header()
    sizes = {name: int(value) for name, value in re.findall(r"#\s*define (GGML_MAX_\w+)\s+(\d+)", text)}
    sizes["GGML_MAX_OP_PARAMS / sizeof(int32_t)"] = sizes["GGML_MAX_OP_PARAMS"] // 4
    body = re.search(r"struct ggml_tensor \{(.*?)\n    \};", text, re.S)
    assert body is not None
    simple = {"int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t, "int32_t": ctypes.c_int32, "char": ctypes.c_char}
    fields: list[tuple[str, Any]] = []
    for kind, pointer, name, count in re.findall(
        r"^\s+((?:enum|struct)?\s*\w+) (\*?)\s*(\w+)(?:\[([^\]]+)\])?;", body[1], re.M
    ):
        field: Any = ctypes.c_void_p if pointer else simple.get(kind.strip(), ctypes.c_int)
        if count:
            field = field * (sizes[count] if count in sizes else int(count))
        fields.append((name, field))
    return type("Tensor", (ctypes.Structure,), {"_fields_": fields})


def mul_mat_number() -> int:
    """GGML_OP_MUL_MAT, by its place in the enum."""
    body = re.search(r"enum ggml_op \{(.*?)\};", header(), re.S)
    assert body is not None
    names = re.findall(r"^\s*(GGML_OP_\w+)", body[1], re.M)
    return names.index("GGML_OP_MUL_MAT")


class Listener:
    """Adds up the squares of everything that is multiplied by a weight; `callback` is given to a context."""

    def __init__(self) -> None:
        import llama_cpp

        self.found: dict[str, Squares] = {}
        self.tensor, self.mul_mat = tensor_type(), mul_mat_number()
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._heard)

    def _heard(self, address: int, ask: bool, _data: int) -> bool:
        seen: Any = self.tensor.from_address(address)
        if seen.op != self.mul_mat:
            return not ask
        weight: Any = self.tensor.from_address(seen.src[0])
        given: Any = self.tensor.from_address(seen.src[1])
        name = weight.name.decode()
        if not name.endswith(".weight") or given.type != GGML_TYPE_F32:
            return not ask
        if not ask:
            self._add(name, given)
        return True

    def _add(self, name: str, given: Any) -> None:
        channels, rows = given.ne[0], given.ne[1] * given.ne[2] * given.ne[3]
        assert given.nb[0] == 4
        assert given.nb[1] == 4 * channels
        data = (ctypes.c_float * (channels * rows)).from_address(given.data)
        squares = (np.frombuffer(data, dtype=np.float32).reshape(rows, channels).astype(np.float64) ** 2).sum(0)
        before = self.found.get(name, Squares(np.zeros(channels), 0))
        self.found[name] = Squares(before.sums + squares, before.rows + rows)


def mean_squares(path: Path, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float64]]:
    """The mean square of each weight's input channels, over all tokens of `rows`, by llama.cpp."""
    import llama_cpp

    from export.engines.llama_library import captured_log, model_parameters

    listener = Listener()
    with captured_log():
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_parameters())
        parameters = llama_cpp.llama_context_default_params()
        longest = max(map(len, rows))
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = longest
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = longest
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cb_eval = listener.callback
        context = llama_cpp.llama_init_from_model(model, parameters)
        batch = llama_cpp.llama_batch_init(longest, 0, 1)
        for ids in rows:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
                batch.seq_id[place][0], batch.logits[place] = 0, True
            assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return {name: squares.sums / squares.rows for name, squares in listener.found.items()}
