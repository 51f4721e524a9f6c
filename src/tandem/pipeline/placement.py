"""Placement: which device runs each block or slice of it, and how many micro-batches are on their way at once."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.devices.segment import Part, Segment, Stage
from tandem.devices.spec import EmbedSpec, HeadSpec, Slice
from tandem.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Share:
    """A device's share of a block: the whole block (slice None), or FFN columns, or KV heads."""

    device: str
    slice: Slice | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """For every block of a model, in block order, its shares: one whole, or slices in the order of their index.

    The first share's device owns the block: it adds up what the slices give, and does post-norm and residual.
    `tandem.pipeline.notation` reads placements as people write them, and writes them.
    """

    blocks: tuple[tuple[Share, ...], ...]
    micro_batches: int = 1

    @property
    def owners(self) -> tuple[str, ...]:
        """The device that owns each block."""
        return tuple(shares[0].device for shares in self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """The devices in use, each once, in the order in which a step reaches them first."""
        return tuple(dict.fromkeys(share.device for shares in self.blocks for share in shares))

    @property
    def slices(self) -> int:
        """The most slices that a block is cut into; 0 where none is."""
        return max((len(shares) for shares in self.blocks if len(shares) > 1), default=0)

    def stages(self) -> tuple[Stage, ...]:
        """What a step runs, stage after stage; segments of a stage run side by side, each as one program.

        Consecutive blocks of one owner are one segment; slices are a stage of their own, and the owner begins its
        next segment with adding them up. With micro-batches the head stands alone: it runs once, for all of them.
        """
        stages: list[Stage] = []
        run: list[Part] = []
        owner = ""

        def end_run() -> None:
            if run:
                stages.append((Segment(owner, tuple(run)),))
                run.clear()

        for index, shares in enumerate(self.blocks):
            alone = self.micro_batches > 1 and index == len(self.blocks) - 1
            if shares[0].device != owner or len(shares) > 1 or alone:
                end_run()
            owner = shares[0].device
            if len(shares) == 1:
                run.append(Part(index))
                continue
            stages.append(tuple(Segment(share.device, (Part(index, share.slice),)) for share in shares))
            run.append(Part(index, combines=len(shares)))
        end_run()
        return tuple(stages)


def host_of(device: str) -> str:
    """Who embeds and makes logits for a device that has the blocks beside: itself, or the CPU for an ONNX device."""
    return "cpu" if device.startswith("onnx:") else device


def on_one(spec: ModelSpec, device: str, micro_batches: int = 1) -> Placement:
    """Every block on one device; on an ONNX device, those of all layers."""
    ends, layers = (Share(host_of(device)),), (Share(device),)
    blocks = tuple(ends if isinstance(block, EmbedSpec | HeadSpec) else layers for block in spec.blocks)
    return Placement(blocks, micro_batches)
