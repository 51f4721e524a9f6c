"""The Vulkan device: GPUs through the system's Vulkan driver and compute shaders of our own."""

from tandem.devices.vulkan.device import VulkanDevice

__all__ = ["VulkanDevice"]
