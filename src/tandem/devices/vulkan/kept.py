"""What is kept about a GPU between processes: what its driver compiled, and which kernels were measured to be fastest.

Both lie under the user's cache in files whose names tell device, driver and shaders: whatever changes, nothing stale is
found. What cannot be used is ignored with one line in the log, and made anew.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from functools import cache
from pathlib import Path

import msgspec

from tandem.cache import cache_folder, read_bytes, read_kept, write_bytes, write_kept
from tandem.devices.vulkan.probe import Gpu
from tandem.devices.vulkan.variants import Variant

SHADERS = Path(__file__).parent / "shaders"
log = logging.getLogger("tandem.vulkan")

_SCHEMA = 1
# VkPipelineCacheHeaderVersionOne: its size, its version, vendor, device, and the driver's own number.
HEADER = struct.Struct("<IIII16s")
# A pipeline: its shader and its specialization constants.
PipelineKey = tuple[str, tuple[int, ...]]


class KeptPipelines(msgspec.Struct, frozen=True):
    """data: the driver's, as VkPipelineCache gives it, or nothing; digest: of it. used: by the last
    processes, the newest first.
    """

    used: list[PipelineKey]
    data: bytes
    digest: bytes


class Choice(msgspec.Struct, frozen=True):
    """What was chosen for the products with one matrix, in steps of one bucket.

    single: for a product whose sums nobody adds up, so that they are not split. rows: with which it was measured.
    seconds: of one product; usual: of the kernel that the rules would have taken.
    """

    type: str
    outputs: int
    columns: int
    single: bool
    bucket: int
    rows: int
    variant: Variant
    seconds: float
    usual: float


class TuningTable(msgspec.Struct, frozen=True):
    """For a reader: device, driver. choices: at most one for each matrix, bucket and `single`."""

    device: str
    driver: str
    choices: list[Choice]


def pipelines_path(gpu: Gpu) -> Path:
    return _path(gpu, "pipelines", "bin")


def tuning_path(gpu: Gpu, deterministic: bool) -> Path:
    return _path(gpu, "tuned" if deterministic else "tuned-not-deterministic", "json")


def read_pipelines(path: Path, gpu: Gpu) -> KeptPipelines | None:
    """What the driver compiled before, if it is whole and this driver's."""
    data, wrong = read_bytes(path)
    if data is not None:
        try:
            found = msgspec.msgpack.decode(data, type=KeptPipelines)
        except (msgspec.DecodeError, ValueError) as error:
            wrong = f"{path} is damaged ({error})"
        else:
            if found.digest != _digest(found.data):
                wrong = f"{path} is damaged (its bytes are not those that were written)"
            elif found.data and not _made_by(found.data, gpu):
                wrong = f"{path} comes from another GPU or driver"
            else:
                return found
    if wrong is not None:
        log.warning("%s; pipelines are compiled again", wrong)
    return None


def write_pipelines(path: Path, used: list[PipelineKey], data: bytes) -> bool:
    return write_bytes(path, msgspec.msgpack.encode(KeptPipelines(used, data, _digest(data))))


def read_tuning(path: Path) -> TuningTable | None:
    found, wrong = read_kept(path, TuningTable)
    if wrong is not None:
        log.warning("%s; kernels are measured again", wrong)
    return found


def write_tuning(path: Path, table: TuningTable) -> bool:
    return write_kept(path, table)


def _path(gpu: Gpu, what: str, ending: str) -> Path:
    vendor, device, driver = gpu.identity
    text = f"{_SCHEMA} {gpu.name} {gpu.driver} {gpu.api} {vendor:x} {device:x} {driver.hex()} {_shaders_digest()}"
    return cache_folder() / "vulkan" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{what}.{ending}"


def _made_by(data: bytes, gpu: Gpu) -> bool:
    """Whether the header of a pipeline cache is this driver's."""
    if len(data) < HEADER.size:
        return False
    size, version, *identity = HEADER.unpack_from(data)
    return size >= HEADER.size and version == 1 and tuple(identity) == gpu.identity


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@cache
def _shaders_digest() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(SHADERS.glob("*.spv")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
