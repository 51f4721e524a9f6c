"""The Vulkan instance: the loader, its validation layers, and the physical devices that its drivers offer."""

from __future__ import annotations

import os
import threading
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, VulkanError, call, ffi, library, listed, struct, text
from tandem.errors import DeviceError

VALIDATION_VARIABLE = "TANDEM_VULKAN_VALIDATION"
_VALIDATION_LAYER = "VK_LAYER_KHRONOS_validation"
_API = vk.api_version(1, 2)


class Instance:
    """validation: run under the validation layers, whose complaints are collected in `messages`.

    Raises DeviceError where the loader, the layers or a working driver are missing.
    """

    def __init__(self, validation: bool | None = None) -> None:
        if validation is None:
            validation = os.environ.get(VALIDATION_VARIABLE, "") not in ("", "0")
        self.messages: list[str] = []
        vulkan = library()
        version = ffi.new("uint32_t*")
        call("vkEnumerateInstanceVersion", version)
        if version[0] < _API:
            raise DeviceError("vulkan: the loader is older than Vulkan 1.2; upgrade libvulkan1")
        layers, extensions = self._validation_names() if validation else ([], [])
        # What the create info points to must live until the call returns.
        layer_names = [ffi.new("char[]", name.encode()) for name in layers]
        extension_names = [ffi.new("char[]", name.encode()) for name in extensions]
        layer_array, extension_array = ffi.new("char*[]", layer_names), ffi.new("char*[]", extension_names)
        application = struct("VkApplicationInfo", apiVersion=_API)
        info = struct(
            "VkInstanceCreateInfo",
            pApplicationInfo=application,
            enabledLayerCount=len(layers),
            ppEnabledLayerNames=layer_array,
            enabledExtensionCount=len(extensions),
            ppEnabledExtensionNames=extension_array,
        )
        handle = ffi.new("VkInstance*")
        try:
            call("vkCreateInstance", info, NULL, handle)
        except VulkanError as error:
            raise DeviceError(
                f"vulkan: no driver could be started ({error}); check the driver files in /usr/share/vulkan/icd.d and "
                "VK_DRIVER_FILES, or reinstall your GPU's driver (mesa-vulkan-drivers for AMD and Intel)"
            ) from None
        self.handle = handle[0]
        self._vulkan = vulkan
        self._messenger = self._listen() if validation else NULL

    def function(self, name: str) -> Any:
        """An instance-level function of an extension."""
        pointer = self._loader_function(name)
        if pointer == NULL:
            raise DeviceError(f"vulkan: the driver has no {name}")
        return ffi.cast(f"PFN_{name}", pointer)

    def physical_devices(self) -> list[Any]:
        """Handles, in the loader's order. Raises DeviceError where there is none."""
        try:
            found = listed(
                self._vulkan.vkEnumeratePhysicalDevices, "VkPhysicalDevice", self.handle, convert=lambda each: each
            )
        except VulkanError as error:
            raise DeviceError(
                f"vulkan: the installed drivers do not start ({error}); reinstall your GPU's driver"
            ) from None
        if not found:
            raise DeviceError(
                "vulkan: no driver offers a device; install your GPU's driver (AMD and Intel: mesa-vulkan-drivers) and "
                "see that this user may open /dev/dri/renderD* (group render)"
            )
        return found

    def close(self) -> None:
        if self.handle != NULL:
            if self._messenger != NULL:
                self.function("vkDestroyDebugUtilsMessengerEXT")(self.handle, self._messenger, NULL)
            self._vulkan.vkDestroyInstance(self.handle, NULL)
            self.handle = NULL

    def _loader_function(self, name: str) -> Any:
        return self._vulkan.vkGetInstanceProcAddr(self.handle, ffi.new("char[]", name.encode()))

    @staticmethod
    def _validation_names() -> tuple[list[str], list[str]]:
        names = listed(
            library().vkEnumerateInstanceLayerProperties, "VkLayerProperties", convert=lambda each: text(each.layerName)
        )
        if _VALIDATION_LAYER not in names:
            raise DeviceError(
                f"vulkan: validation was asked for, but {_VALIDATION_LAYER} is not installed "
                "(Debian, Ubuntu: apt install vulkan-validationlayers)"
            )
        return [_VALIDATION_LAYER], ["VK_EXT_debug_utils"]

    def _listen(self) -> Any:
        @ffi.callback("PFN_vkDebugUtilsMessengerCallbackEXT")  # type: ignore[untyped-decorator]
        def note(_severity: int, _types: int, data: Any, _user: Any) -> int:
            said = text(data.pMessage)
            # What we look up is a device's; a loader that is older than the layers tries an instance's, too.
            if "which is an instance level function" not in said:
                self.messages.append(said)
            return 0

        self._note = note
        info = struct(
            "VkDebugUtilsMessengerCreateInfoEXT",
            messageSeverity=vk.SEVERITY_WARNING | vk.SEVERITY_ERROR,
            messageType=vk.MESSAGE_VALIDATION,
            pfnUserCallback=note,
        )
        messenger = ffi.new("VkDebugUtilsMessengerEXT*")
        code = self.function("vkCreateDebugUtilsMessengerEXT")(self.handle, info, NULL, messenger)
        if code != vk.SUCCESS:
            raise VulkanError("vkCreateDebugUtilsMessengerEXT", code)
        return messenger[0]


_shared: Instance | None = None
_lock = threading.Lock()


def shared_instance() -> Instance:
    """The process's one instance, made on first use and kept: drivers are slow to start, and some leak."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Instance()
        return _shared
