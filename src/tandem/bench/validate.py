"""Whether this machine computes a model rightly: every placement against the reference, and the model against the
weights it was made from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from tandem._native import Scorer
from tandem.bench.perplexity import cut_windows
from tandem.bench.teacher import Floats, Teacher
from tandem.devices.cpu.threads import default_threads
from tandem.engine.build import EngineConfig
from tandem.errors import BenchError, DeviceError, MemoryPlanError, UnsupportedModelError
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.notation import parse_placement
from tandem.weights.checkpoint import Checkpoint

REFERENCE = "ref"
_REFERENCE_SUMS = "not checked: the reference multiplies with NumPy, whose sums may depend on the number of rows"
# Of the reference's logits, which are kept.
_KEPT_BYTES = 256 << 20
# Products of quantized weights take 8-bit activations: what that may cost against float32 ones, in nats.
MAX_DIVERGENCE = 0.01
# What perplexity may move for the same reason.
MAX_PERPLEXITY_CHANGE = 0.005
# Read where nobody gives a text: enough for two windows of any tokenizer.
TEXT = (
    "The lamp stood in the window of the last house before the sea. Every evening an old woman filled it with oil, "
    "trimmed the wick and set a match to it, and every morning she put it out again. The boats that came home late "
    "looked for it, and the children of the village, who had never known the coast without it, called it the second "
    "moon. One winter the oil ran short. The shopkeeper had three tins left, and the road over the hills was under "
    "snow. The woman counted the nights until spring and divided them by the tins, and saw that it would not do. So "
    "she went from door to door and asked for what each could spare: a cup here, a spoonful there, a candle's end, "
    "a little fat from the kitchen. By the third evening she had a jar of something that was not quite oil and not "
    "quite anything else, and it burned with a smell of bread and fish and old summers. Then a boat came in which "
    "nobody had expected, and the men in it said that they had steered by the light, but that it was the smell that "
    "told them they were nearly home."
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. passed: None where it could not be run, with the reason in `detail`, or where nobody
    set a limit.
    """

    subject: str
    name: str
    passed: bool | None
    detail: str
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a placement gave for all rows, in one order whatever was read together."""

    logits: Floats
    nll: np.ndarray[Any, np.dtype[np.float64]]
    top: np.ndarray[Any, np.dtype[np.int32]]

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.nll.mean()))


def read_windows(
    checkpoint: Checkpoint, config: EngineConfig, windows: Sequence[Sequence[int]], scorer: Scorer, *, together: int
) -> Reading:
    """The second halves of the windows, all of one length."""
    logits: dict[int, list[Floats]] = {number: [] for number in range(len(windows))}
    targets: dict[int, list[Any]] = {number: [] for number in range(len(windows))}
    length = len(windows[0])
    with Teacher(checkpoint, config, length=length, together=together) as teacher:
        for forced in teacher.read(windows, length // 2):
            for number in np.unique(forced.windows):
                mine = forced.windows == number
                logits[number].append(forced.logits[mine])
                targets[number].append(forced.targets[mine])
    rows = np.concatenate([part for parts in logits.values() for part in parts])
    wanted = np.concatenate([part for parts in targets.values() for part in parts])
    nll, top = np.empty(len(rows), np.float64), np.empty(len(rows), np.int32)
    scorer.score(rows, wanted, nll, top)
    return Reading(rows, nll, top)


@dataclass(frozen=True, slots=True)
class Validation:
    """length: tokens of a window. windows: how many are read at most. max_loss: nats that the model may be away from
    `against`; None judges nothing.
    """

    checkpoint: Checkpoint
    config: EngineConfig
    placements: Sequence[str]
    against: Checkpoint | None = None
    text: str = TEXT
    length: int = 64
    windows: int = 4
    max_loss: float | None = None

    def run(self, report: Callable[[Check], None]) -> list[Check]:
        """All checks, each reported when it is done. Raises BenchError for a text of too few tokens."""
        checks: list[Check] = []
        for check in self._checks():
            report(check)
            checks.append(check)
        return checks

    def _checks(self) -> Iterator[Check]:
        spec = model_spec(self.checkpoint)
        rows = max(1, _KEPT_BYTES // (4 * spec.vocab * (self.length // 2)))
        windows = cut_windows(self.checkpoint, self.text, self.length, min(self.windows, rows))
        scorer = Scorer(self.config.threads or default_threads())
        base: tuple[str, Reading] | None = None
        for placement in (REFERENCE, *(p for p in self.placements if p != REFERENCE)):
            try:
                found = self._read_on(self.checkpoint, placement, windows, scorer, together=len(windows))
                alone = self._read_on(self.checkpoint, placement, windows[:1], scorer, together=1)
            except (DeviceError, MemoryPlanError, UnsupportedModelError) as refusal:
                yield Check(placement, "runs", None, f"not run: {refusal}", {})
                continue
            yield _finite(placement, found)
            if base is None:
                base = placement, found
            else:
                yield from _agreement(placement, base, found, scorer)
            if placement != REFERENCE and (self.config.deterministic or placement == "cpu"):
                names = parse_placement(placement, spec, lambda i: block_weights(self.checkpoint, spec, i)).names
                if REFERENCE in names:
                    yield Check(placement, "batch invariance", None, _REFERENCE_SUMS, {})
                else:
                    yield _invariance(placement, found, alone)
        if base is None:
            raise BenchError("no placement could run this model; the lines above say why")
        if self.against is not None:
            yield self._fidelity(self.against, windows, scorer)

    def _read_on(
        self, checkpoint: Checkpoint, placement: str, windows: Sequence[Sequence[int]], scorer: Scorer, *, together: int
    ) -> Reading:
        return read_windows(checkpoint, replace(self.config, placement=placement), windows, scorer, together=together)

    def _fidelity(self, against: Checkpoint, windows: Sequence[Sequence[int]], scorer: Scorer) -> Check:
        """The model against its unquantized weights, both on the first placement that is not the reference."""
        placement = next((p for p in self.placements if p != REFERENCE), REFERENCE)
        vocabularies = [model_spec(checkpoint).vocab for checkpoint in (self.checkpoint, against)]
        if vocabularies[0] != vocabularies[1]:
            raise BenchError(
                f"{against.path} has {vocabularies[1]:,} tokens and {self.checkpoint.path} {vocabularies[0]:,}; "
                "compare a model with the weights that it was made from"
            )
        whole, quantized = (
            self._read_on(checkpoint, placement, windows, scorer, together=len(windows))
            for checkpoint in (against, self.checkpoint)
        )
        kl, same = distance(whole, quantized, scorer)
        figures = {
            "kl": kl,
            "top1": same,
            "perplexity": quantized.perplexity,
            "perplexity_unquantized": whole.perplexity,
        }
        limit = self.max_loss
        detail = (
            f"KL {kl:.5f} nats ({'no limit given' if limit is None else f'at most {limit:g}'}), "
            f"top-1 agreement {100 * same:.1f} %, perplexity {quantized.perplexity:.3f} against {whole.perplexity:.3f}"
        )
        return Check(placement, "unquantized weights", None if limit is None else kl <= limit, detail, figures)


def distance(p: Reading, q: Reading, scorer: Scorer) -> tuple[float, float]:
    """Mean KL in nats, and the share of rows whose likeliest token is the same."""
    divergence = np.empty(len(p.logits), np.float64)
    scorer.diverge(p.logits, q.logits, divergence)
    return float(divergence.mean()), float((p.top == q.top).mean())


def _finite(placement: str, read: Reading) -> Check:
    finite = bool(np.isfinite(read.logits).all())
    return Check(
        placement,
        "finite logits",
        finite,
        f"{len(read.logits):,} rows, perplexity {read.perplexity:.3f}" if finite else "infinities or NaN among them",
        {"perplexity": read.perplexity},
    )


def _agreement(placement: str, base: tuple[str, Reading], read: Reading, scorer: Scorer) -> Iterator[Check]:
    name, other = base
    kl, same = distance(other, read, scorer)
    largest = float(np.abs(other.logits - read.logits).max())
    yield Check(
        placement,
        f"logits of {name}",
        kl <= MAX_DIVERGENCE,
        f"KL {kl:.2e} nats (at most {MAX_DIVERGENCE:g}), largest difference {largest:.3g}, "
        f"top-1 agreement {100 * same:.1f} %",
        {"kl": kl, "largest": largest, "top1": same},
    )
    difference = read.nll - other.nll
    mean, error = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
    yield Check(
        placement,
        f"perplexity of {name}",
        abs(mean) <= MAX_PERPLEXITY_CHANGE + 3 * error,
        f"{read.perplexity:.3f}, {100 * math.expm1(mean):+.2f} % (at most {100 * MAX_PERPLEXITY_CHANGE:g} % and three "
        f"standard errors of {100 * error:.2f} %)",
        {"perplexity": read.perplexity, "nll_difference": mean, "standard_error": error},
    )


def _invariance(placement: str, together: Reading, alone: Reading) -> Check:
    same = np.array_equal(together.logits[: len(alone.logits)], alone.logits)
    return Check(
        placement,
        "batch invariance",
        same,
        "a window alone and among others: the same bits"
        if same
        else "a window alone gives other bits than among others",
        {},
    )


def available_placements() -> list[str]:
    """Every device of this machine by itself, and each pair as attention | FFN, both ways."""
    from tandem.devices.vulkan.facts import describe_gpus

    devices = ["cpu"]
    with suppress(DeviceError):  # no Vulkan here: `tandem devices` says why
        devices += [gpu["name"] for gpu in describe_gpus() if gpu["usable"]]
    return devices + [f"attn={a},ffn={b}" for a in devices for b in devices if a != b]
