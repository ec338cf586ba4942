"""Packed int8 matrices in oneDNN's layout, written to a file and memory-mapped from it without a copy.

Packing half a gigabyte takes 1.7 s on one core. The layout is specific to a processor and a build of torch.
A tensor is made from the bytes by ``aoti_torch_create_tensor_from_blob_v2`` of torch's stable C interface,
which compiled models use too, with torch's serialised description of the layout.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

ALIGNMENT = 64  # bytes of a cache line
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
    """A matrix in oneDNN's layout. ``memory``: the tensor that holds its bytes, if it does not own them."""

    matrix: torch.Tensor
    memory: torch.Tensor | None = None


class PackedForm(NamedTuple):
    """Description of a packed matrix: sizes, number of bytes, and torch's serialised layout in hex."""

    sizes: list[int]
    bytes: int
    layout: str


def pack(values: torch.Tensor) -> Packed:
    """Pack an int8 matrix (out, in) for oneDNN's products."""
    return Packed(torch.ops.onednn.qlinear_prepack(values, None))


def form_of(packed: Packed) -> PackedForm:
    """Describe a packed matrix."""
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed.matrix)  # noqa: SLF001 - no public name exists
    count = int(torch.ops.mkldnn._nbytes(packed.matrix))  # noqa: SLF001
    return PackedForm(list(packed.matrix.shape), count, bytes(layout.tolist()).hex())


def bytes_of(packed: Packed) -> memoryview:
    """Return a view of the bytes of a packed matrix, which must outlive the view."""
    form = form_of(packed)
    address = torch.ops.mkldnn.data_ptr(packed.matrix)
    return memoryview((ctypes.c_ubyte * form.bytes).from_address(address)).cast("B")


def unpacked(memory: torch.Tensor, offset: int, form: PackedForm) -> Packed:
    """Return the packed matrix whose bytes begin at ``offset`` of ``memory`` (N,) uint8, without a copy.

    Raises ``ValueError`` if the offset is not aligned, the bytes do not fit, or torch refuses the layout.
    """
    if offset % ALIGNMENT or not 0 <= offset <= len(memory) - form.bytes:
        raise ValueError(f"{form.bytes} bytes at {offset} of {len(memory)}")
    library = _library()
    layout = bytes.fromhex(form.layout)
    sizes = (ctypes.c_int64 * len(form.sizes))(*form.sizes)
    strides = (ctypes.c_int64 * len(form.sizes))()  # unused: the layout has them
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
    """Whether this build of torch can write packed matrices and read them again, tried on a small one."""
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
