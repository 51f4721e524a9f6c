"""Makes the golden values of the chat-template tests with transformers.

    PYTHONPATH=src:tests python tests/golden/make_chat_golden.py

chat_templates.json: for every template and conversation of tests/text/conversations.py the length and a hash of the
text that transformers renders, or "error" where rendering raises.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

from text.conversations import CASES, SPECIAL_TOKENS, templates

GOLDEN = Path(__file__).parent


def rendered(template: str, case: dict) -> str:
    settings = {"add_generation_prompt": True, **{key: case[key] for key in case if key != "messages"}}
    try:
        texts, _ = render_jinja_template([case["messages"]], chat_template=template, **settings, **SPECIAL_TOKENS)
    except Exception:
        return "error"
    return f"{len(texts[0])}:{hashlib.sha256(texts[0].encode()).hexdigest()[:8]}"


def main() -> None:
    golden = {name: {case: rendered(template, CASES[case]) for case in CASES} for name, template in templates().items()}
    (GOLDEN / "chat_templates.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
