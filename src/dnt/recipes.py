"""The paper's runs, as far as they are known (arXiv 2507.17501), and two small ones. Pure data, no torch.

Language models on OpenWebText, owt-...

    from the paper    the three sizes, both placements and optimizers, bfloat16, cosine with warm-up, momentum 0.9,
                      AdamW's betas, and at 124M the rates 6e-4 (AdamW) and 1.0 (mSGDW)
    from nanoGPT      its GPT-2 run, the paper's baseline: data and split, 480 sequences of 1024 tokens a step, 600,000
                      steps, 2000 of warm-up, floor 0.1, clipping at 1.0, decay 0.1, LayerNorm without biases in
                      "pre-ln", the vocabulary padded to 50304
    ours              mSGDW's decay 1e-4, and at 774M and 1.4B the rates of 124M: not known, to be tuned;
                      msgdw-calibrated, with what won at 0.8M parameters (docs/calibration.md): not tried at this size

Classifiers on ImageNet-1k, imagenet-...

    from the paper    ViT-L/16 and ViT-H/14, both placements and optimizers, bfloat16, cosine with warm-up, momentum
                      0.9, and for V-DNT-Large the rates 1e-3 (AdamW) and 0.5 (mSGDW)
    from timm         the paper's baselines: class token, learned positions, and in "pre-ln" LayerNorm of eps 1e-6
                      with biases everywhere
    from DeiT         its 300 epochs (arXiv 2012.12877, table 9), since its rule of 5e-4 for 512 images gives the
                      paper's 1e-3 at its 1024 images a step: 1251 steps an epoch, 5 epochs of warm-up, down to 1e-5,
                      AdamW's betas and decay 0.05, drop-path 0.1, augmentation (docs/images.md says what differs)
    ours              clipping at 1.0 (DeiT does not clip), initialization, mSGDW's decay 1e-4, no average of the
                      weights, and the rates of V-DNT-Large for "pre-ln" and for ViT-H: not known, to be tuned

Small ones, tiny and tiny-images, are ours: a run takes about 15 seconds on one core (bench/zoo.py).

The paper gives neither epochs, batch size, warm-up, augmentation, drop-path nor decay of its ImageNet runs. 1251 steps
are an epoch of all 1,281,167 training images; without the 5,000 that are our validation, the 300 are 301.

The paper does not say whether mSGDW's rates, 1.0 and 0.5, belong to m = mu m + g ("msgdw", our form) or to the average
m = mu m + (1 - mu) g, which in our form are rates of 0.1 and 0.05 ("msgdw-averaged").
"""

from functools import reduce
from itertools import product
from operator import or_
from typing import Any

from dnt.settings import VARIATIONS, TrainSettings

Rows = dict[str, dict[str, Any]]

OPENWEBTEXT: dict[str, Any] = {
    **{"data": "owt", "tokenizer": "gpt2", "vocab_multiple": 64},
    **{"steps": 600_000, "batch_size": 480, "schedule": "cosine", "warmup": 2000, "floor": 0.1, "clip": 1.0},
    **{"precision": "bf16-mixed", "eval_every": 2000, "eval_tokens": 0, "checkpoint_every": 2000},
}
GPTS: Rows = {"124m": {"model": "gpt2-small"}, "774m": {"model": "gpt2-large"}, "1.4b": {"model": "gpt2-1.4b"}}
GPT_PLACEMENTS: Rows = {
    "pre-ln": {"placement": "pre-ln", "norm": "layernorm", "norm_eps": 1e-5},
    "dnt": {"placement": "dnt"},
}
GPT_OPTIMIZERS: Rows = {
    "adamw": {"optimizer": "adamw", "lr": 6e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "msgdw": {"optimizer": "msgdw", "lr": 1.0, "weight_decay": 1e-4, "momentum": 0.9},
    "msgdw-averaged": {"optimizer": "msgdw", "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9},
}

CALIBRATED: Rows = {
    "msgdw-calibrated": {"optimizer": "msgdw", "lr": 0.3, "weight_decay": 1e-3 / 0.3} | VARIATIONS["calibrated"]
}

EPOCH = 1251  # steps
IMAGENET: dict[str, Any] = {
    **{"data": "ILSVRC/imagenet-1k", "image_size": 224, "augment": "deit", "drop_path": 0.1},  # gated: docs/vision.md
    **{"steps": 300 * EPOCH, "batch_size": 1024, "schedule": "cosine", "warmup": 5 * EPOCH, "floor": 0.01, "clip": 1.0},
    **{"precision": "bf16-mixed", "eval_every": EPOCH, "eval_tokens": 0, "checkpoint_every": EPOCH},
}
VITS: Rows = {"l": {"model": "vit-large"}, "h": {"model": "vit-huge"}}
VIT_PLACEMENTS: Rows = {
    "pre-ln": {"placement": "pre-ln", "norm": "layernorm", "norm_eps": 1e-6, "bias": True},
    "dnt": {"placement": "dnt"},
}
VIT_OPTIMIZERS: Rows = {
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "betas": (0.9, 0.999)},
    "msgdw": {"optimizer": "msgdw", "lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9},
    "msgdw-averaged": {"optimizer": "msgdw", "lr": 0.05, "weight_decay": 1e-4, "momentum": 0.9},
}


SMALL: dict[str, Any] = {
    **{"depth": 6, "dim": 64, "heads": 4, "steps": 200, "warmup": 20, "precision": "32", "compile": False},
    **{"eval_every": 200, "checkpoint_every": 200, "eval_tokens": 1 << 16},
}
TINY: Rows = {
    "tiny": SMALL | {"data": "stdlib", "model": "gpt-tiny", "context": 64, "batch_size": 16},
    "tiny-images": SMALL | {"data": "digits", "model": "vit-tiny", "patch_size": 2, "batch_size": 64},
}


def crossed(task: str, shared: dict[str, Any], *axes: Rows) -> dict[str, TrainSettings]:
    """Every combination of a size, a placement and an optimizer."""
    recipes = {}
    for names in product(*axes):
        rows = [axis[name] for axis, name in zip(axes, names, strict=True)]
        recipes["-".join((task, *names))] = TrainSettings(**reduce(or_, rows, shared))
    return recipes


RECIPES: dict[str, TrainSettings] = {
    **crossed("owt", OPENWEBTEXT, GPTS, GPT_PLACEMENTS, GPT_OPTIMIZERS),
    **crossed("owt", OPENWEBTEXT, GPTS, {"dnt": GPT_PLACEMENTS["dnt"]}, CALIBRATED),
    **crossed("imagenet", IMAGENET, VITS, VIT_PLACEMENTS, VIT_OPTIMIZERS),
    **crossed("imagenet", IMAGENET, VITS, {"dnt": VIT_PLACEMENTS["dnt"]}, CALIBRATED),
    **{name: TrainSettings(**fields) for name, fields in TINY.items()},
}
