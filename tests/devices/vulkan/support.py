"""Random blocks and models for the Vulkan device, and how far two results are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.cases import Case
from models.tiny import weights, write_hf
from tandem.devices.base import Device
from tandem.devices.spec import BlockSpec
from tandem.devices.weights_check import expected_shapes
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import Tensor, TensorType
from weights.builders import SCALES

BUNDLED = Path(__file__).parents[3] / "src" / "tandem" / "data" / "tandem-stories-22m.gguf"


def random_tensor(random: np.random.Generator, name: str, kind: TensorType, shape: tuple[int, ...]) -> Tensor:
    """Any bits as quants, small float16 scales; float types around zero."""
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    values = random.normal(0, 0.1, (rows, shape[-1])).astype(np.float32)
    match kind:
        case TensorType.F32:
            data = values.view(np.uint8)
        case TensorType.F16:
            data = values.astype(np.float16).view(np.uint8)
        case TensorType.BF16:
            data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        case _:
            data = random.integers(0, 256, (rows, kind.row_bytes(shape[-1])), dtype=np.uint8)
            blocks = data.reshape(-1, kind.block_bytes)
            for at in SCALES[kind]:
                scales = random.uniform(-0.02, 0.02, (len(blocks), 1)).astype(np.float16)
                blocks[:, at : at + 2] = scales.view(np.uint8)
    return Tensor(name, kind, shape, np.ascontiguousarray(data).reshape(-1))


def random_weights(random: np.random.Generator, spec: BlockSpec, kind: TensorType) -> dict[str, Tensor]:
    """Matrices of `kind`, vectors in float32."""
    return {
        role: random_tensor(random, role, kind if len(shape) == 2 else TensorType.F32, shape)
        for role, shape in expected_shapes(spec).items()
    }


def tiny(case: Case, folder: Path) -> tuple[ModelSpec, Checkpoint]:
    checkpoint = open_checkpoint(str(write_hf(folder / case.name, case.config, weights(case))))
    return model_spec(checkpoint), checkpoint


def bundled() -> tuple[ModelSpec, Checkpoint]:
    checkpoint = open_checkpoint(str(BUNDLED))
    return model_spec(checkpoint), checkpoint


def whole(spec: ModelSpec, device: Device) -> list[tuple[Device, range]]:
    return [(device, range(len(spec.blocks)))]


def prompts_for(spec: ModelSpec, *lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, spec.vocab, length).tolist() for length in lengths]


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
