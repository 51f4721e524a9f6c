"""Models named `hf:owner/name`: downloads from a stand-in hub, the cache without it, and what can go wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from paths import REPO, SHARED
from tandem.errors import ModelFileError
from tandem.weights.selection import choose_from_repository
from weights.builders import split_model
from weights.hub_stub import HubStub

TINY = SHARED / "data/models/TinyStories-656K"
STORIES = SHARED / "models/tandem-stories-22m"
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens

# huggingface_hub reads its environment when it is imported, so each case has its own process.
PROGRAM = """
import json, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
from tandem.errors import ModelFileError
from tandem.weights.open import open_checkpoint
try:
    checkpoint = open_checkpoint(sys.argv[1])
except ModelFileError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"format": checkpoint.format, "tensors": len(checkpoint.tensors),
                      "path": str(checkpoint.path), "files": sorted(checkpoint.files)}))
"""


def without_gguf(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".gguf"}


@dataclass(frozen=True)
class Hub:
    stub: HubStub
    cache: Path

    def open(self, name: str, **environment: str) -> dict[str, object]:
        child = subprocess.run(
            [sys.executable, "-c", PROGRAM, name],
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
                "PYTHONPATH": os.pathsep.join([str(REPO / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "HF_ENDPOINT": self.stub.url,
                "HF_HOME": str(self.cache),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert child.returncode == 0, child.stderr
        return json.loads(child.stdout) | {"stderr": child.stderr}


@pytest.fixture
def start_hub(tmp_path: Path) -> Iterator[Callable[[dict[str, dict[str, bytes]]], Hub]]:
    stubs = []

    def start(repositories: dict[str, dict[str, bytes]]) -> Hub:
        stubs.append(HubStub(repositories))
        return Hub(stubs[-1], tmp_path / "cache")

    yield start
    for stub in stubs:
        stub.close()


StartHub = Callable[[dict[str, dict[str, bytes]]], Hub]


def test_a_model_is_downloaded_once_and_then_opens_offline(start_hub: StartHub) -> None:
    hub = start_hub({"a/tiny": {**without_gguf(TINY), "model.onnx": b"unwanted", "README.md": b"hello"}})
    hub.stub.interrupt.add("model.safetensors")
    first = hub.open("hf:a/tiny")
    assert (first["format"], first["tensors"]) == ("safetensors", 21)
    assert first["files"] == ["generation_config.json", "tokenizer_config.json"]
    folder = Path(str(first["path"]))
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == wanted
    assert "Fetching" in str(first["stderr"]), "a progress bar"
    # The connection broke off in the middle of the weights; the rest was asked for, not the whole again.
    assert len(hub.stub.ranges) == 1
    assert int(hub.stub.ranges[0].removeprefix("bytes=").rstrip("-")) > 1_000_000
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        offline = hub.open("hf:a/tiny", **environment)
        assert (offline["tensors"], offline["path"]) == (21, first["path"])


def test_a_sharded_model_is_downloaded_with_all_its_shards(start_hub: StartHub) -> None:
    hub = start_hub({"a/shards": without_gguf(STORIES)})
    assert hub.open("hf:a/shards")["tensors"] == 80


def test_gguf_models_are_downloaded_with_all_parts(start_hub: StartHub, tmp_path: Path) -> None:
    parts = {f"q8/{path.name}": path.read_bytes() for path in split_model(tmp_path)}
    tiny = (TINY / "TinyStories-656K-Q8_0.gguf").read_bytes()
    hub = start_hub({"a/parts": {**parts, "README.md": b""}, "a/both": {**parts, "tiny.gguf": tiny}})
    assert hub.open("hf:a/parts")["tensors"] == 4
    assert hub.open("hf:a/both/tiny.gguf")["tensors"] == 20
    assert hub.open("hf:a/both/q8/model-00002-of-00003.gguf")["tensors"] == 4
    assert hub.open("hf:a/both")["error"] == (
        "a/both holds 2 GGUF models, name one of them: q8/model-00001-of-00003.gguf, tiny.gguf"
    )
    offline = hub.open("hf:a/parts/other.gguf", HF_HUB_OFFLINE="1")
    assert str(offline["error"]).startswith("the hub does not answer, and the cached a/parts has no file other.gguf")


def test_refusals_are_one_sentence_that_says_what_to_do(start_hub: StartHub) -> None:
    hub = start_hub({"a/gated": without_gguf(TINY), "a/broken": {}})
    hub.stub.gated.add("a/gated")
    hub.stub.broken.add("a/broken")
    assert hub.open("hf:a/gated")["error"] == (
        f"a/gated is gated: accept its terms at {hub.stub.url}/a/gated, "
        "then log in with `hf auth login` or set HF_TOKEN"
    )
    assert hub.open("hf:a/absent")["error"] == (
        "the hub has no model a/absent, or it is private: check the name, and for a private one log in with "
        "`hf auth login` or set HF_TOKEN"
    )
    unreachable = (
        "{} is not in the cache and the hub does not answer (no network, or HF_HUB_OFFLINE is set); connect, or "
        "copy the model here and give its path"
    )
    assert hub.open("hf:a/broken")["error"] == unreachable.format("a/broken")
    assert hub.open("hf:a/gated", HF_ENDPOINT=NOWHERE)["error"] == unreachable.format("a/gated")
    assert str(hub.open("hf:a/..")["error"]).startswith("hf:a/.. is not a valid name on the hub: ")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:/name", "hf:owner/", "hf:owner/name/", "hf:ow ner/name"])
def test_names_that_cannot_be_are_refused_without_the_network(name: str) -> None:
    from tandem.weights.open import open_checkpoint

    with pytest.raises(ModelFileError, match="does not name a model; expected hf:owner/name or hf:owner/name/file"):
        open_checkpoint(name)


FOLDER = ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "consolidated.safetensors"]
PARTS = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("files", "named", "chosen"),
    [
        ([*FOLDER, "model.safetensors"], None, ["model.safetensors", *FOLDER[:3]]),
        (
            [*FOLDER, "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            None,
            ["model.safetensors.index.json", *FOLDER[:3]],
        ),
        (
            [*FOLDER, "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "model-00001-of-00002.safetensors",
            ["model.safetensors.index.json", *FOLDER[:3]],
        ),
        ([*FOLDER, "model.safetensors"], "consolidated.safetensors", ["consolidated.safetensors", *FOLDER[:3]]),
        ([*FOLDER, "model.safetensors", "m.gguf"], None, ["model.safetensors", *FOLDER[:3]]),
        ([*FOLDER, "model.safetensors", "m.gguf"], "m.gguf", ["m.gguf"]),
        (["config.json", "m.gguf", "mmproj-m.gguf"], None, ["m.gguf"]),
        (["Q4/m.gguf", "README.md"], None, ["Q4/m.gguf"]),
        (PARTS, None, PARTS),
        ([*PARTS, "n-00001-of-00002.gguf"], PARTS[1], PARTS),
        (["m-00001-of-00003.gguf", *PARTS], PARTS[0], PARTS),
    ],
)
def test_the_files_of_one_model_are_chosen(files: list[str], named: str | None, chosen: list[str]) -> None:
    assert choose_from_repository(files, named, "a/b") == chosen


@pytest.mark.parametrize(
    ("files", "named", "message"),
    [
        ([], None, "a/b is not a model that Tandem opens: .*; it holds nothing"),
        (
            ["README.md", "model.safetensors"],
            None,
            "expected config.json with model.safetensors .* holds README.md, model",
        ),
        (["a.gguf", "b.gguf"], None, "a/b holds 2 GGUF models, name one of them: a.gguf, b.gguf"),
        ([f"{n:02}.gguf" for n in range(30)], None, "holds 30 GGUF models, .* 19.gguf and 10 more"),
        (["a.gguf"], "b.gguf", "a/b has no file b.gguf; it holds a.gguf"),
        (["a.safetensors"], "b.gguf", "a/b has no file b.gguf; it holds a.safetensors"),
        (["README.md"], "b.gguf", "a/b has no file b.gguf$"),
        (["README.md"], "README.md", r"README.md is not a model; expected a \.gguf or \.safetensors file"),
        (["config.json", "x/m.safetensors"], "x/m.safetensors", "x/m.safetensors is not a model"),
    ],
)
def test_a_repository_without_a_clear_model_says_what_it_holds(
    files: list[str], named: str | None, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        choose_from_repository(files, named, "a/b")
