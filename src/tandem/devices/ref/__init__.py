"""The reference device: numpy, float32, the oracle of every other device."""

from tandem.devices.ref.device import RefDevice

__all__ = ["RefDevice"]
