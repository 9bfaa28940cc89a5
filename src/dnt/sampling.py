"""Text from a trained run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dnt.data.tokenizers import tokenizer_from
from dnt.files import read_json
from dnt.nn.gpt import GPT
from dnt.settings import SampleSettings
from dnt.weights import load


def sample(run: str | Path, settings: SampleSettings | None = None, **options: Any) -> str:
    """The prompt, if there is one, and what the run's model makes of it; options are the fields of SampleSettings."""
    settings = replace(settings or SampleSettings(), **options)
    model = load(run)
    if not isinstance(model, GPT):
        raise ValueError(f"{run} holds a {type(model).__name__}, which writes no text; sample from a run of a GPT.")
    tokenizer = tokenizer_from(read_json(Path(run) / "tokenizer.json", "a run folder"))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{run}: the tokenizer has {tokenizer.vocab_size} symbols, the model {model.config.vocab_size}; "
            "tokenizer.json is not this run's."
        )
    prompt = tokenizer.encode(settings.prompt).tolist() if settings.prompt else list(tokenizer.start)
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = model.generate(
        torch.tensor([prompt]),
        settings.tokens,
        settings.temperature,
        settings.top_k,
        generator,
        symbols=tokenizer.vocab_size,
    )
    return tokenizer.decode(tokens[0].tolist()[0 if settings.prompt else len(prompt) :])
