"""Makes the golden values of tests/models with transformers in float32.

    PYTHONPATH=src:tests python tests/golden/make_model_golden.py

model_logits.npz: for every case of tests/models/cases.py and each of its prompts, every position's logits.
tinystories_greedy.json: prompts and 200 greedy tokens of TinyStories-656K.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from models.cases import CASES, Case
from models.tiny import shapes, weights, write_hf
from paths import SHARED

GOLDEN = Path(__file__).parent
TINY_STORIES = SHARED / "data" / "models" / "TinyStories-656K"
TINY_STORIES_PROMPTS = ("Once upon a time", "One day, a little girl named Lucy", "The dog")
GREEDY_TOKENS = 200


def load(folder: Path) -> transformers.PreTrainedModel:
    """The checkpoint in float32, with nothing missing and nothing left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits_of(model: transformers.PreTrainedModel, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].numpy()


def case_hidden(case: Case, folder: Path) -> list[np.ndarray]:
    """Every position's hidden state behind the final norm, for each prompt."""
    model = load(write_hf(folder, case.config, weights(case)))
    with torch.no_grad():
        return [model.base_model(torch.tensor([prompt])).last_hidden_state[0].numpy() for prompt in case.prompts]


def case_logits(case: Case, folder: Path) -> list[np.ndarray]:
    model = load(write_hf(folder, case.config, weights(case)))
    stored = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if case.config["tie_word_embeddings"]:
        stored.pop("lm_head.weight")
    assert stored == shapes(case.config), case.name
    if "residual" in case.name:
        assert largest_residual(model, case.prompts[0]) >= 1e6
    return [logits_of(model, prompt) for prompt in case.prompts]


def largest_residual(model: transformers.PreTrainedModel, prompt: list[int]) -> float:
    with torch.no_grad():
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    # The last one is normalized.
    return max(float(state.abs().max()) for state in states[:-1])


def greedy(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(logits_of(model, tokens)[-1])))
    return tokens[len(prompt) :]


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            for index, logits in enumerate(case_logits(case, Path(folder) / case.name)):
                arrays[f"{case.name}/{index}"] = logits
    np.savez_compressed(GOLDEN / "model_logits.npz", **arrays)
    model = load(TINY_STORIES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_STORIES)
    stories = []
    for text in TINY_STORIES_PROMPTS:
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        stories.append({"text": text, "prompt": prompt, "tokens": greedy(model, prompt, GREEDY_TOKENS)})
    (GOLDEN / "tinystories_greedy.json").write_text(json.dumps(stories) + "\n")


if __name__ == "__main__":
    main()
