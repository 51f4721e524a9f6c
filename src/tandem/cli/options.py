"""The flags that several commands share, each group a dataclass: one field is one flag.

A command takes a whole group as one parameter; `flags` spreads it into the signature that typer reads.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from tandem.cli.config import ConfigFile
from tandem.errors import RequestError

if TYPE_CHECKING:
    from tandem.engine.build import EngineConfig
    from tandem.engine.sampling_params import SamplingParams
    from tandem.llm import LLM

MAX_TOKENS = 256

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", show_default="the bundled one",
        help="A GGUF file, a Hugging Face folder, or hf:owner/name or hf:owner/name/file.",
    ),
]  # fmt: skip
# For commands about a model's files, which take it in either place.
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="The same as --model.", show_default=False)
]
# The parameters by which commands take models.
_MODEL_WAYS = ("model", "model_option", "more_models")
_SAMPLING = "Sampling (defaults: the model's own)"
KVDtype = Literal["f16", "q8_0", "f32"]


def _sampling(help: str, *, default: str | bool = False) -> Any:
    return typer.Option(help=help, show_default=default, rich_help_panel=_SAMPLING)


def _engine(help: str, *, default: str | bool = False, low: float | None = None) -> Any:
    return typer.Option(help=help, show_default=default, min=low, rich_help_panel="Engine")


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Names and meanings are those of `SamplingParams`; None leaves a value to the model's own defaults."""

    max_tokens: Annotated[int | None, _sampling("At most so many tokens.", default=str(MAX_TOKENS))] = None
    temperature: Annotated[float | None, _sampling("0 takes the likeliest token always.")] = None
    top_k: Annotated[int | None, _sampling("Choose among the k likeliest; 0: among all.")] = None
    top_p: Annotated[float | None, _sampling("Choose among the likeliest with this total probability.")] = None
    min_p: Annotated[float | None, _sampling("Drop what is less likely than this times the likeliest.")] = None
    repetition_penalty: Annotated[float | None, _sampling("Over 1: against tokens of prompt and text.")] = None
    presence_penalty: Annotated[float | None, _sampling("Over 0: against tokens that the text holds.")] = None
    frequency_penalty: Annotated[float | None, _sampling("Over 0: the same, for each time.")] = None
    seed: Annotated[int | None, _sampling("The same seed gives the same text.")] = None
    stop: Annotated[list[str] | None, _sampling("A text that ends the output; may be repeated.")] = None
    ignore_eos: Annotated[
        bool | None,
        typer.Option("--ignore-eos", help="Go on after the model's end of text.", rich_help_panel=_SAMPLING),
    ] = None
    min_tokens: Annotated[int | None, _sampling("No end of text before so many tokens.")] = None

    def params(self, defaults: SamplingParams | None = None, **more: Any) -> SamplingParams:
        """`defaults` with what the flags say. Raises RequestError, also without `defaults`: to check before loading."""
        from msgspec.structs import asdict

        from tandem.engine.sampling_params import SamplingParams

        usual = {**asdict(defaults or SamplingParams()), "max_tokens": max(MAX_TOKENS, self.min_tokens or 0)}
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return SamplingParams(**{**usual, **given, **more})


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Where and with what memory an engine runs; names and meanings are those of `EngineConfig`."""

    threads: Annotated[int | None, _engine("CPU threads.", default="all cores", low=1)] = None
    placement: Annotated[
        str, _engine("auto, a device, or several such as attn=DEVICE,ffn=DEVICE,m=2.", default=True)
    ] = "auto"
    kv_dtype: Annotated[KVDtype, _engine("Type of the KV cache.", default=True)] = "f16"
    deterministic: Annotated[
        bool,
        _engine("On Vulkan: the batch does not show in results; without it prefill is faster.", default=True),
    ] = True
    memory: Annotated[
        str | None, _engine("All that may be used, like 8GiB; auto: what is free.", default="what is needed")
    ] = None


@dataclasses.dataclass(frozen=True, slots=True)
class EngineOptions(DeviceOptions):
    """What an engine is built for."""

    context: Annotated[
        int | None, _engine("Positions of one sequence.", default="the model's, or what fits", low=2)
    ] = None

    def config(self, sequences: int) -> EngineConfig:
        """For `sequences` sequences at once, all of full length."""
        from tandem.engine.build import EngineConfig

        rows = max(EngineConfig().rows, sequences)
        return EngineConfig(**dataclasses.asdict(self), max_sequences=sequences, full_sequences=sequences, rows=rows)

    def load(self, model: str | None, *, max_sequences: int) -> LLM:
        """Loads the model, with a progress line on stderr if that is a terminal."""
        from tandem.llm import LLM

        progress = _show_loading() if sys.stderr.isatty() else None
        return LLM(model, max_sequences=max_sequences, progress=progress, **dataclasses.asdict(self))


def chosen_model(argument: str | None, option: str | None) -> str | None:
    """The model that is named in either place."""
    if argument is not None and option is not None:
        raise RequestError("give the model once, as MODEL or as --model")
    return option if argument is None else argument


def _show_loading() -> Callable[[int, int], None]:
    """A line that appears when loading takes longer than a glance, and goes when it is done."""
    start = time.perf_counter()
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done < total and time.perf_counter() - start > 0.5:
            print(f"\rloading {100 * done // total} %", end="", file=sys.stderr, flush=True)
            shown = True
        elif shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    return show


def flags(command: Callable[..., None], *, configured: bool = False) -> Callable[..., None]:
    """`command` with each parameter that is a dataclass replaced by one keyword parameter per field.

    configured: its flags take their defaults from the configuration, and `--config` names its file.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if not dataclasses.is_dataclass(hints[name]):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        group = groups[name] = hints[name]
        annotations = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=annotations[field.name],
            )
            for field in dataclasses.fields(group)
        ]

    if configured:
        for name, annotation in (("configuration", ConfigFile), ("ctx", typer.Context)):
            default = None if name == "configuration" else inspect.Parameter.empty
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        if configured:
            del values["configuration"]
            source = values.pop("ctx").get_parameter_source
            ways = {name: source(name).name for name in _MODEL_WAYS if name in values}
            if "COMMANDLINE" in ways.values():
                # The configuration's model is for when the command line names none.
                values |= {name: None for name, way in ways.items() if way == "DEFAULT_MAP"}
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread
