"""schemathesis over the OpenAPI document: whatever comes in, answers are as the document says, and none is a 5xx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from served import Server

pytestmark = pytest.mark.server


def test_the_document_is_complete(server: Server) -> None:
    status, document = server.get("/openapi.json")
    assert status == 200
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "422", "429", "503"} <= set(chat["responses"])
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    properties = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    assert {"messages", "tools", "response_format", "stream", "seed"} <= set(properties)
    assert server.get("/docs")[0] == 200


def test_schemathesis(tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    server = Server("--context", "256", "--max-tokens", "2")
    try:
        server.wait_ready()
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--checks", checks,
                "--max-examples", "25", "--seed", "1", "--exclude-path", "/live", "--no-color",
                "--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--max-failures", "5",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        assert server.metric("tandem_requests_total", outcome="finished") > 10
        assert not [line for line in server.log if '"level": "error"' in line]
    finally:
        server.stop()
