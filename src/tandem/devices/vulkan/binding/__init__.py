"""The system's libvulkan.so.1 through cffi in ABI mode: the structs and functions that we use, every result checked."""
