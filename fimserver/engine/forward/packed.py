"""Packed matrices as bytes: what oneDNN made of a matrix, kept in a file and used from there without a copy.

Packing half a gigabyte takes 1.7 seconds of a processor. The layout is that of one processor and one build of
torch. The way back is the one that compiled models take: ``aoti_torch_create_tensor_from_blob_v2`` of torch's
stable C interface, with the description that torch wrote of the layout.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

ALIGNMENT = 64  # bytes: of a cache line
_Sizes = ctypes.POINTER(ctypes.c_int64)
_DATA = (
    ctypes.c_void_p,
    ctypes.c_int64,
    _Sizes,
    _Sizes,
    ctypes.c_int64,
)  # dimensions, sizes, strides, offset
_KIND = (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)  # type, device, its number
_RESULT = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)  # and the layout


class Packed(NamedTuple):
    """A matrix in the layout of the processor's kernels. ``memory``: what it lies in, if not its own."""

    matrix: torch.Tensor
    memory: torch.Tensor | None = None


class PackedForm(NamedTuple):
    """What a packed matrix looks like: its sizes, its bytes, and the description of its layout in hex."""

    sizes: list[int]
    bytes: int
    layout: str


def pack(values: torch.Tensor) -> Packed:
    """Lay an int8 matrix (out, in) out for products."""
    return Packed(torch.ops.onednn.qlinear_prepack(values, None))


def form_of(packed: Packed) -> PackedForm:
    """The form of a packed matrix."""
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed.matrix)  # noqa: SLF001 - no public name exists
    count = int(torch.ops.mkldnn._nbytes(packed.matrix))  # noqa: SLF001
    return PackedForm(list(packed.matrix.shape), count, bytes(layout.tolist()).hex())


def bytes_of(packed: Packed) -> memoryview:
    """The bytes of a packed matrix, which must outlive them."""
    form = form_of(packed)
    address = torch.ops.mkldnn.data_ptr(packed.matrix)
    return memoryview((ctypes.c_ubyte * form.bytes).from_address(address)).cast("B")


def unpacked(memory: torch.Tensor, offset: int, form: PackedForm) -> Packed:
    """The packed matrix whose bytes begin at ``offset`` of ``memory`` (N,) uint8. Nothing is copied.

    Raises ``ValueError`` where they do not fit.
    """
    if offset % ALIGNMENT or not 0 <= offset <= len(memory) - form.bytes:
        raise ValueError(f"{form.bytes} bytes at {offset} of {len(memory)}")
    library = _library()
    layout = bytes.fromhex(form.layout)
    sizes = (ctypes.c_int64 * len(form.sizes))(*form.sizes)
    strides = (ctypes.c_int64 * len(form.sizes))()  # the layout says them
    made = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        memory.data_ptr() + offset,
        len(sizes),
        sizes,
        strides,
        0,
        library.aoti_torch_dtype_int8(),
        library.aoti_torch_device_type_cpu(),
        0,
        ctypes.byref(made),
        library.aoti_torch_layout__mkldnn(),
        layout,
        len(layout),
    )
    if failed:
        raise ValueError(f"torch does not take a packed matrix of {form.sizes}")
    matrix = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(made))  # noqa: SLF001
    return Packed(matrix, memory)


@functools.cache
def keeps_packed() -> bool:
    """Whether this build of torch can write packed matrices and take them back, tried on a small one."""
    values = torch.arange(64 * 128, dtype=torch.int32).remainder(251).sub(125).to(torch.int8).view(64, 128)
    try:
        packed = pack(values)
        form = form_of(packed)
        memory = torch.empty(form.bytes + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        memory = memory[start : start + form.bytes]
        memory.copy_(torch.frombuffer(bytearray(bytes_of(packed)), dtype=torch.uint8))
        again = unpacked(memory, 0, form)
        return form_of(again) == form and bytes(bytes_of(again)) == bytes(bytes_of(packed))
    except (AttributeError, RuntimeError, NotImplementedError, OSError, TypeError, ValueError):
        return False


@functools.cache
def _library() -> ctypes.CDLL:
    (path,) = (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")
    library = ctypes.CDLL(str(path))
    library.aoti_torch_create_tensor_from_blob_v2.argtypes = (*_DATA, *_KIND, *_RESULT)
    return library


def _capsule(pointer: ctypes.c_void_p) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(pointer, None, None)
