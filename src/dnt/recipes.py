"""The paper's language-model runs, as far as they are known (arXiv 2507.17501). Pure data, no torch.

    from the paper    the three sizes, both placements and optimizers, bfloat16, cosine with warm-up, momentum 0.9,
                      AdamW's betas, and at 124M the rates 6e-4 (AdamW) and 1.0 (mSGDW)
    from nanoGPT      its GPT-2 run, the paper's baseline: data and split, 480 sequences of 1024 tokens a step, 600,000
                      steps, 2000 of warm-up, floor 0.1, clipping at 1.0, decay 0.1, LayerNorm without biases in
                      "pre-ln", the vocabulary padded to 50304
    ours              mSGDW's decay 1e-4, and at 774M and 1.4B the rates of 124M: not known, to be tuned

The paper does not say whether its rate of 1.0 belongs to m = mu m + g ("msgdw", our form) or to the average
m = mu m + (1 - mu) g, which in our form is a rate of 0.1 ("msgdw-averaged").
"""

from itertools import product
from typing import Any

from dnt.settings import TrainSettings

SIZES = {"124m": "gpt2-small", "774m": "gpt2-large", "1.4b": "gpt2-1.4b"}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "pre-ln": {"placement": "pre-ln", "norm": "layernorm", "norm_eps": 1e-5},
    "dnt": {"placement": "dnt"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 6e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "msgdw": {"optimizer": "msgdw", "lr": 1.0, "weight_decay": 1e-4, "momentum": 0.9},
    "msgdw-averaged": {"optimizer": "msgdw", "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9},
}
OPENWEBTEXT: dict[str, Any] = {
    **{"data": "owt", "tokenizer": "gpt2", "vocab_multiple": 64},
    **{"steps": 600_000, "batch_size": 480, "schedule": "cosine", "warmup": 2000, "floor": 0.1, "clip": 1.0},
    **{"precision": "bf16-mixed", "eval_every": 2000, "eval_tokens": 0, "checkpoint_every": 2000},
}
RECIPES: dict[str, TrainSettings] = {
    f"owt-{size}-{placement}-{optimizer}": TrainSettings(
        **OPENWEBTEXT, **PLACEMENTS[placement], **OPTIMIZERS[optimizer], model=SIZES[size]
    )
    for size, placement, optimizer in product(SIZES, PLACEMENTS, OPTIMIZERS)
}
