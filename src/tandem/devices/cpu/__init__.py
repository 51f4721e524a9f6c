"""The CPU device: native kernels on threads of its own."""

from tandem.devices.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
