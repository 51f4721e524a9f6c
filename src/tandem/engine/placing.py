"""Choosing a placement for a model on this machine: profiles and plans that are kept, and what `auto` means."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log2
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tandem.cache import read_kept, write_kept
from tandem.devices.base import Device
from tandem.engine.build import EngineConfig, plan_placement
from tandem.engine.host_cost import measure_host
from tandem.errors import DeviceError, MemoryPlanError
from tandem.memory.plan import MemoryPlan
from tandem.models.load import block_weights
from tandem.models.spec import ModelSpec
from tandem.pipeline.devices import open_device, usable_devices
from tandem.pipeline.notation import Weights, parse_placement
from tandem.pipeline.placement import Placement
from tandem.pipeline.planner import Candidate, choose_unverified, predict_candidates
from tandem.pipeline.probe import FULL, QUICK, Effort, block_keys, profile_model, worthwhile
from tandem.pipeline.profile import Profile, cache_path, model_key
from tandem.pipeline.workload import Workload
from tandem.weights.checkpoint import Checkpoint

_PLANS = 32


class KeptPlan(msgspec.Struct, frozen=True):
    """What was chosen for a workload, after it was run."""

    batch: int
    prompt: int
    new: int
    placement: str
    tokens_per_s: float


class KeptPlans(msgspec.Struct, frozen=True):
    """The newest first."""

    plans: list[KeptPlan]


@dataclass(frozen=True, slots=True)
class Site:
    """A model on some devices of this machine. names: of the devices, with descriptions."""

    checkpoint: Checkpoint
    spec: ModelSpec
    names: Mapping[str, str]
    config: EngineConfig
    keys: Sequence[str]

    @property
    def weights(self) -> Weights:
        return lambda index: block_weights(self.checkpoint, self.spec, index)

    @property
    def model(self) -> str:
        return model_key(self.spec, self.keys, self.config.kv_dtype)

    def path(self, what: str, folder: Path | None = None) -> Path:
        """Of what is kept about it: `profile` or `plans`."""
        kind = "" if self.config.deterministic else " not deterministic"
        return cache_path(what, self.model, {name: text + kind for name, text in self.names.items()}, folder)

    @contextmanager
    def devices(self) -> Iterator[dict[str, Device]]:
        """All of them, open. Raises DeviceError."""
        found: dict[str, Device] = {}
        try:
            for name in self.names:
                found[name] = open_device(name, threads=self.config.threads, deterministic=self.config.deterministic)
            yield found
        finally:
            for device in found.values():
                device.close()


def find_site(
    checkpoint: Checkpoint, spec: ModelSpec, config: EngineConfig, names: Mapping[str, str] | None = None
) -> Site:
    """names: of devices, with descriptions; None: all that are usable."""
    names = usable_devices(config.threads) if names is None else names
    keys = block_keys(spec, lambda index: block_weights(checkpoint, spec, index))
    return Site(checkpoint, spec, names, config, keys)


def with_config(site: Site, config: EngineConfig) -> Site:
    """The same place for another engine."""
    return Site(site.checkpoint, site.spec, site.names, config, site.keys)


def obtain_profile(
    site: Site,
    effort: Effort | None = None,
    *,
    remeasure: bool = False,
    glance: bool = False,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Profile, str]:
    """The kept profile of at least this effort (None: full), or one that is measured now and kept; and which it is.

    glance: leave out devices that a look at one block shows to be hopeless. Raises DeviceError and MemoryPlanError
    where measuring fails.
    """
    effort = effort or FULL
    path = site.path("profile", folder)
    kept, wrong = read_kept(path, Profile)
    if kept is not None and not remeasure and kept.effort in (FULL.name, effort.name):
        return kept, f"kept in {path}"
    with site.devices() as devices:
        if glance:
            names = worthwhile(site.spec, site.weights, devices)
            devices = {name: devices[name] for name in names}
        profile = profile_model(
            site.spec, site.weights, devices, kv_dtype=site.config.kv_dtype, effort=effort, progress=say
        )
    if effort.name == FULL.name:
        measured = {}
        for name, device in profile.devices.items():
            if say is not None:
                say(f"{name}: the host between steps")
            host = measure_host(site.checkpoint, site.spec, name, site.config.threads)
            measured[name] = replace(device, host=host)
        profile = replace(profile, devices=measured)
    told = "measured now" if write_kept(path, profile) else f"measured now; it cannot be kept in {path.parent}"
    return profile, told if wrong is None else f"{wrong}: {told}"


def predict_site(
    site: Site,
    profile: Profile,
    workload: Workload,
    devices: Mapping[str, Device],
    placements: Sequence[str] = (),
) -> list[Candidate]:
    """All candidates, or these placements, with the memory that they take under the site's config."""

    def fits(placement: Placement) -> MemoryPlan:
        used = {name: devices[name] for name in placement.names}
        return plan_placement(site.checkpoint, site.spec, site.config, placement, used)

    chosen = [(text, parse_placement(text, site.spec, site.weights)) for text in placements]
    return predict_candidates(site.spec, site.keys, profile, workload, site.weights, fits, chosen)


def keep_plan(site: Site, workload: Workload, placement: str, tokens_per_s: float, folder: Path | None = None) -> None:
    """For `auto`."""
    path = site.path("plans", folder)
    kept, _ = read_kept(path, KeptPlans)
    new = KeptPlan(workload.batch, workload.prompt, workload.new, placement, tokens_per_s)
    same = (new.batch, new.prompt, new.new)
    others = [plan for plan in (kept.plans if kept else []) if (plan.batch, plan.prompt, plan.new) != same]
    write_kept(path, KeptPlans([new, *others][:_PLANS]))


def choose_placement(checkpoint: Checkpoint, spec: ModelSpec, config: EngineConfig, folder: Path | None = None) -> str:
    """What `auto` means here: the only device; or the plan that was kept for a workload most like this configuration;
    or what a profile predicts to be best, which is measured now, in seconds, where none is kept.
    """
    return _choose(checkpoint, spec, config, _without_broken(usable_devices(config.threads), config), folder)


def _choose(
    checkpoint: Checkpoint, spec: ModelSpec, config: EngineConfig, names: Mapping[str, str], folder: Path | None
) -> str:
    if len(names) == 1:
        return next(iter(names))
    site = find_site(checkpoint, spec, config, names)
    kept, _ = read_kept(site.path("plans", folder), KeptPlans)
    if kept is not None and kept.plans:
        return min(kept.plans, key=lambda plan: abs(log2(plan.batch / config.max_sequences))).placement
    context = min(config.context or spec.context, 256)
    batch = min(config.max_sequences, config.rows)
    workload = Workload(batch, max(1, context // 2), max(1, context // 2), max(config.rows, batch))
    try:
        profile, _ = obtain_profile(site, QUICK, glance=True, folder=folder)
        with site.devices() as devices:
            return choose_unverified(predict_site(site, profile, workload, devices)).text
    except (DeviceError, MemoryPlanError) as error:
        left = _without_failed(names, error)
        if len(left) < len(names):
            return _choose(checkpoint, spec, config, left, folder)
        if "cpu" not in names:
            raise
        warnings.warn(f"placement auto takes the CPU, as comparing the devices failed: {error}", stacklevel=2)
        return "cpu"


def _without_broken(names: Mapping[str, str], config: EngineConfig) -> dict[str, str]:
    """Without ONNX devices that do not open: what finds a processor may still refuse to work on it."""
    left = dict(names)
    for name in names:
        if name.startswith("onnx:"):
            try:
                open_device(name, threads=config.threads).close()
            except DeviceError as error:
                left = _without_failed(left, error)
    return left


def _without_failed(names: Mapping[str, str], error: Exception) -> dict[str, str]:
    """Without the ONNX device that the error is of, which is said; all of them where it is another's."""
    failed = [name for name in names if name.startswith("onnx:") and str(error).startswith(f"{name}: ")]
    if failed:
        warnings.warn(f"placement auto goes on without an ONNX device: {error}", stacklevel=2)
    return {name: text for name, text in names.items() if name not in failed}
