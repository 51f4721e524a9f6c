"""`tandem quantize`, `perplexity` and `validate` as a person types them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from commands import error_of, tandem

from paths import REPO
from tandem.llm import BUNDLED_MODEL

TALES = REPO / "tests" / "data" / "held_out_tales.txt"


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantized") / "q4.gguf"
    result = tandem("quantize", BUNDLED_MODEL, target, "--type", "q4_0")
    assert result.exit_code == 0, result.output
    assert "matrices: 1 Q6_K, 42 Q4_0" in result.stdout
    assert "43 matrices were quantized before" in result.stderr
    return target


def test_the_checksum_is_printed_and_stored(q4: Path) -> None:
    digest = hashlib.sha256(q4.read_bytes()).hexdigest()
    assert Path(f"{q4}.sha256").read_text() == f"{digest}  q4.gguf\n"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = tandem("quantize", BUNDLED_MODEL, tmp_path / "q.gguf", "-t", "q4_k_m", "--dry-run")
    assert result.exit_code == 0
    assert "blk.0.ffn_down.weight" in result.stdout
    assert not list(tmp_path.iterdir())


def test_refusals(q4: Path, tmp_path: Path) -> None:
    before = q4.read_bytes()
    assert "exists; take another name, or --force" in error_of(tandem("quantize", BUNDLED_MODEL, q4, "-t", "q8_0"))
    assert q4.read_bytes() == before
    assert error_of(tandem("quantize", BUNDLED_MODEL, tmp_path / "q")) == "give either --type or --recipe"
    assert "there is no type 'q3_k'" in error_of(tandem("quantize", BUNDLED_MODEL, tmp_path / "q", "-t", "q3_k"))
    assert "does not exist" in error_of(
        tandem("quantize", BUNDLED_MODEL, tmp_path / "q", "--recipe", tmp_path / "r.toml")
    )
    assert "there is no model at" in error_of(tandem("quantize", tmp_path / "none", tmp_path / "q", "-t", "q8_0"))
    assert "the text has" in error_of(tandem("perplexity", BUNDLED_MODEL, TALES, "--context", 4096))


def test_perplexity_as_json() -> None:
    result = tandem("perplexity", BUNDLED_MODEL, TALES, "--context", 128, "--windows", 3, "--together", 2, "--json")
    found = json.loads(result.stdout)
    assert (found["tokens"], found["windows"], found["length"]) == (3 * 63, 3, 128)
    assert 100 < found["perplexity"] < 1500


@pytest.mark.slow
def test_a_quantized_model_is_valid_on_the_cpu(q4: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ("validate", q4, "--against", BUNDLED_MODEL, "--placements", "cpu", "--placements", "attn=cpu,ffn=ref")
    result = tandem(*words, "--json", report)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    assert found["passed"] is True
    checks = {(check["subject"], check["name"]): check for check in found["checks"]}
    assert checks["cpu", "batch invariance"]["passed"] is True
    assert checks["attn=cpu,ffn=ref", "logits of ref"]["passed"] is True
    assert checks["attn=cpu,ffn=ref", "batch invariance"]["passed"] is None
    assert checks["cpu", "unquantized weights"]["passed"] is None
    assert 0.01 < checks["cpu", "unquantized weights"]["figures"]["kl"] < 1


@pytest.mark.slow
def test_a_model_too_far_from_its_weights_fails(q4: Path) -> None:
    words = ("validate", q4, "--against", BUNDLED_MODEL, "--placements", "cpu", "--windows", 1, "--max-kl", 0.001)
    result = tandem(*words)
    assert result.exit_code == 1
    assert "FAILED  cpu" in result.stdout
    assert "FAILED: " in result.stdout


def test_a_device_that_is_missing_is_listed_and_fails_nothing() -> None:
    result = tandem("validate", BUNDLED_MODEL, "--placements", "vulkan:99", "--windows", 1)
    assert result.exit_code == 0
    assert "vulkan:99" in result.stdout
    assert "not run: " in result.stdout
