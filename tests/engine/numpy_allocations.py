"""Counts the arrays that numpy allocates, through its memory handler (NEP 49)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
# PyDataMem_SetHandler in the table of numpy's C API.
_SET_HANDLER = 304


class _Handler(ctypes.Structure):
    """PyDataMem_Handler of numpy/core/include/numpy/ndarraytypes.h, version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _MALLOC),
        ("calloc", _CALLOC),
        ("realloc", _REALLOC),
        ("free", _FREE),
    )


_libc = ctypes.CDLL(None)
for _name in ("malloc", "calloc", "realloc"):
    getattr(_libc, _name).restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]

sizes: list[int] = []


def _malloc(context: int, size: int) -> int:
    sizes.append(size)
    return _libc.malloc(size)


def _calloc(context: int, count: int, size: int) -> int:
    sizes.append(count * size)
    return _libc.calloc(count, size)


def _realloc(context: int, pointer: int, size: int) -> int:
    sizes.append(size)
    return _libc.realloc(pointer, size)


def _free(context: int, pointer: int, size: int) -> None:
    _libc.free(pointer)


# Arrays made under the handler may live on: it stays for the life of the process.
_handler = _Handler(b"counting", 1, None, _MALLOC(_malloc), _CALLOC(_calloc), _REALLOC(_realloc), _FREE(_free))
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_name_bytes = b"mem_handler"  # a capsule borrows its name
_capsule = _new(ctypes.addressof(_handler), _name_bytes, None)


def _set_handler(capsule: object) -> object:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[_SET_HANDLER])
    return function(capsule)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Sizes in bytes of the arrays that this thread allocates inside the `with`."""
    before = _set_handler(_capsule)
    sizes.clear()
    try:
        yield sizes
    finally:
        _set_handler(before)
