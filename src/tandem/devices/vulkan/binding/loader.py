"""Loading libvulkan and calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tandem.devices.vulkan.binding import declarations
from tandem.devices.vulkan.binding.constants import INCOMPLETE, RESULTS, SUCCESS, SType
from tandem.errors import DeviceError

_LIBRARY = "libvulkan.so.1"

# cffi is untyped: handles, structs and functions are Any from here on.
ffi: Any = declarations.ffi
NULL: Any = ffi.NULL
T = TypeVar("T")
_loaded: Any = None


class VulkanError(DeviceError):
    """A call failed; `code` is its VkResult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"vulkan: {call} failed with {RESULTS.get(code, 'VkResult')} ({code})")
        self.code = code


def library() -> Any:
    """The functions of libvulkan. Raises DeviceError where the machine has no Vulkan loader."""
    global _loaded
    if _loaded is None:
        try:
            _loaded = ffi.dlopen(_LIBRARY)
        except OSError:
            raise DeviceError(
                f"vulkan: no Vulkan loader on this machine ({_LIBRARY} is missing); install libvulkan1 and your GPU's "
                "driver (Debian, Ubuntu: apt install libvulkan1 mesa-vulkan-drivers)"
            ) from None
    return _loaded


def check(call: str, code: int) -> None:
    """Raises VulkanError unless `code` is VK_SUCCESS."""
    if code != SUCCESS:
        raise VulkanError(call, code)


def call(name: str, *args: Any) -> None:
    """Calls a function of libvulkan that returns a VkResult, and checks it."""
    check(name, getattr(library(), name)(*args))


def create(name: str, result: str, *args: Any) -> Any:
    """Calls a function whose last parameter receives a handle of type `result`; returns the handle."""
    handle = ffi.new(f"{result}*")
    call(name, *args, handle)
    return handle[0]


def struct(name: str, **fields: Any) -> Any:
    """A new struct with its sType set. It must outlive the call that it is passed to, and so must what it points to."""
    return ffi.new(f"{name}*", {"sType": SType[name], **fields})


def listed(
    function: Callable[..., Any],
    element: str,
    *args: Any,
    convert: Callable[[Any], T],
    init: Callable[[Any], None] | None = None,
) -> list[T]:
    """Vulkan's two-call listing: how many, then the elements, each through `convert` while its array lives.

    init: called on every element before the second call, to set its sType.
    """
    name = getattr(function, "__name__", "a listing")
    count = ffi.new("uint32_t*")
    while True:
        _check_listing(name, function(*args, count, NULL))
        items = ffi.new(f"{element}[]", max(1, count[0]))
        for index in range(count[0]):
            if init is not None:
                init(items[index])
        # The list may grow between the two calls: then the answer is incomplete, and we ask again.
        if _check_listing(name, function(*args, count, items)) != INCOMPLETE:
            return [convert(items[index]) for index in range(count[0])]


def _check_listing(name: str, code: int | None) -> int:
    """Some listings return nothing, and cannot fail."""
    if code is not None and code not in (SUCCESS, INCOMPLETE):
        raise VulkanError(name, code)
    return code or SUCCESS


def text(chars: Any) -> str:
    return str(ffi.string(chars).decode("utf-8", "replace"))
