"""What plays which role in a Transformer: q, k, v, o, ... of its parameters, its blocks, and their branches.

By the names of attributes, since nothing else is common to the models of dnt, timm, transformers and torch: a model of
other names needs a row in ROLE_OF, and one in BRANCHES.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

MATRICES = ("q", "k", "v", "o", "gate", "1", "2")
ROLES = ("embedding", "position", *MATRICES, "gain", "bias", "head", "other")
GAINS = ("norm", "gain", "dyt", "bn", "parametrization", "reparam")  # in the name of a class whose vectors are gains
STORED = re.compile(
    r"parametrizations\.(\w+)\.original1?$"
)  # what a weight is computed from; original0 is WeightNorm's g

Shares = dict[str, int]  # of a fused parameter's rows, by role, in their order


def thirds(module: nn.Module) -> Shares:
    return {"q": 1, "k": 1, "v": 1}


def halves(module: nn.Module) -> Shares:
    return {"q": 1, "k": 1}


def grouped(attention: Any) -> Shares:
    """Several heads of queries may share one of keys and values."""
    return {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads}


def up(mlp: Any) -> Shares:
    """Of dnt."""
    return {"gate": 1, "1": 1} if gated(mlp.up, mlp.out) else {"1": 1}


def fc1(mlp: Any) -> Shares:
    """Of timm, whose gate may be either half."""
    if not gated(mlp.fc1, getattr(mlp, "fc2", None)):
        return {"1": 1}
    return {"1": 1, "gate": 1} if getattr(mlp, "gate_last", False) else {"gate": 1, "1": 1}


def gated(first: Any, second: Any) -> bool:
    """Whether the first layer is twice as high as the second is wide."""
    return second is not None and first.weight.shape[0] == 2 * second.weight.shape[1]


# The role of a parameter, by how its name ends (the longest end that stands here), or the shares of several roles, from
# the module that holds the parameter's own module.
ROLE_OF: dict[str, str | Callable[[Any], Shares]] = {
    # dnt
    "tokens.weight": "embedding",
    "patches.weight": "embedding",
    "class_token.weight": "embedding",
    "positions.weight": "position",
    "attn.f.qkv.weight": grouped,
    "attn.f.qkv.qk.weight": halves,
    "attn.f.qkv.v.matrix.weight": "v",
    "attn.f.out.weight": "o",
    "mlp.f.up.weight": up,
    "mlp.f.out.weight": "2",
    "head.weight": "head",
    # timm
    "patch_embed.proj.weight": "embedding",
    "cls_token": "embedding",
    "reg_token": "embedding",
    "dist_token": "embedding",
    "pos_embed": "position",
    "attn.qkv.weight": thirds,
    "attn.proj.weight": "o",
    "mlp.fc1.weight": fc1,
    "mlp.fc1_g.weight": "gate",
    "mlp.fc1_x.weight": "1",
    "mlp.fc2.weight": "2",
    "ls1.gamma": "gain",
    "ls2.gamma": "gain",
    "gamma_1": "gain",
    "gamma_2": "gain",
    "head_dist.weight": "head",
    # GPT-2 of transformers, nanoGPT
    "wte.weight": "embedding",
    "wpe.weight": "position",
    "attn.c_attn.weight": thirds,
    "attn.c_proj.weight": "o",
    "mlp.c_fc.weight": "1",
    "mlp.c_proj.weight": "2",
    "lm_head.weight": "head",
    # Llama and those after it
    "embed_tokens.weight": "embedding",
    "q_proj.weight": "q",
    "k_proj.weight": "k",
    "v_proj.weight": "v",
    "o_proj.weight": "o",
    "gate_proj.weight": "gate",
    "up_proj.weight": "1",
    "down_proj.weight": "2",
    "score.weight": "head",
    # BERT and ViT of transformers
    "word_embeddings.weight": "embedding",
    "token_type_embeddings.weight": "embedding",
    "patch_embeddings.projection.weight": "embedding",
    "position_embeddings.weight": "position",
    "position_embeddings": "position",
    "self.query.weight": "q",
    "self.key.weight": "k",
    "self.value.weight": "v",
    "attention.output.dense.weight": "o",
    "crossattention.output.dense.weight": "o",
    "intermediate.dense.weight": "1",
    "output.dense.weight": "2",
    "predictions.decoder.weight": "head",
    "classifier.weight": "head",
    # torch.nn.TransformerEncoderLayer
    "self_attn.in_proj_weight": thirds,
    "self_attn.out_proj.weight": "o",
    "linear1.weight": "1",
    "linear2.weight": "2",
}

# What is applied in turn to the residual stream to give a branch; the first row whose paths a block has.
BRANCHES: tuple[dict[str, tuple[str, ...]], ...] = (
    {  # dnt
        "attn": ("attn.pre", "attn.scale", "attn.f", "attn.mid", "attn.gain"),
        "mlp": ("mlp.pre", "mlp.scale", "mlp.f", "mlp.mid", "mlp.gain"),
    },
    {"attn": ("norm1", "attn", "ls1"), "mlp": ("norm2", "mlp", "ls2")},  # timm
    {"attn": ("ln_1", "attn"), "mlp": ("ln_2", "mlp")},  # GPT-2
    {  # Gemma 2, whose post_attention_layernorm is another than Llama's
        "attn": ("input_layernorm", "self_attn", "post_attention_layernorm"),
        "mlp": ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    },
    {"attn": ("self_attn", "post_attention_layernorm"), "mlp": ("mlp", "post_feedforward_layernorm")},  # OLMo 2
    {"attn": ("input_layernorm", "self_attn"), "mlp": ("post_attention_layernorm", "mlp")},  # Llama
    {"attn": ("layernorm_before", "attention"), "mlp": ("layernorm_after", "mlp")},  # ViT of transformers
)


@dataclass(frozen=True, eq=False)
class Part:
    """Entries of a parameter that play one role: all of it, or q, k or v of a fused projection.

    name: the parameter's own, with its role if it is divided: "blocks.0.attn.f.qkv.weight[q]". layer: which block, if
    any. The entries are those from start to stop along axis. across: stored (in, out), as transformers' Conv1D does.
    """

    name: str
    role: str
    layer: int | None
    parameter: nn.Parameter
    axis: int
    start: int
    stop: int
    across: bool

    @property
    def of_block(self) -> bool:
        """Whether it is one of the matrices of a block."""
        return self.role in MATRICES and self.layer is not None

    def of(self, tensor: Tensor) -> Tensor:
        """That part of a tensor shaped like the parameter; a view."""
        return tensor.narrow(self.axis, self.start, self.stop - self.start) if tensor.ndim else tensor

    def matrix(self, tensor: Tensor | None = None) -> Tensor:
        """(out, in), of the parameter itself if None; convolutions are flattened, a vector is one row."""
        rows = self.of(self.parameter.detach() if tensor is None else tensor)
        rows = rows[0] if rows.ndim > 2 and len(rows) == 1 else rows  # tokens and positions may have a batch axis
        rows = torch.atleast_2d(rows).flatten(1)
        return rows.T if self.across else rows


def parts(model: nn.Module) -> list[Part]:
    """Every trainable entry exactly once (tied ones once), in the model's order."""
    layers = [f"{name}." for name, _ in blocks(model)]
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = next((i for i, prefix in enumerate(layers) if name.startswith(prefix)), None)
        plain = STORED.sub(r"\1", name)
        own = plain.rpartition(".")[0]
        across = parameter.ndim == 2 and type(model.get_submodule(own)).__name__ == "Conv1D"
        size = parameter.shape[int(across)] if parameter.ndim else 1
        shares = shares_of(model, plain, parameter)
        ends = [0, *accumulate(shares.values())]
        for role, bounds in zip(shares, pairwise(size * end // ends[-1] for end in ends), strict=True):
            divided = f"{name}[{role}]" if len(shares) > 1 else name
            found.append(Part(divided, role, layer, parameter, int(across), *bounds, across))
    return found


def shares_of(model: nn.Module, name: str, parameter: nn.Parameter) -> Shares:
    """The roles of a parameter's entries."""
    words = name.split(".")
    ends = (".".join(words[i:]) for i in range(len(words)))
    if row := next((ROLE_OF[end] for end in ends if end in ROLE_OF), None):
        return {row: 1} if isinstance(row, str) else row(model.get_submodule(".".join(words[:-2])))
    if parameter.ndim == 1 and words[-1].endswith("bias"):
        return {"bias": 1}
    owner = type(model.get_submodule(".".join(words[:-1]))).__name__.lower()
    return {"gain": 1} if parameter.ndim == 1 and any(word in owner for word in GAINS) else {"other": 1}


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of the residual blocks: the longest list of modules of one class, themselves made of modules.

    [] if there is none. Of lists equally long, the first.
    """
    lists = [(name, list(m)) for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [(name, found) for name, found in lists if len({type(m) for m in found}) == 1 and any(found[0].children())]
    name, longest = max(alike, key=lambda each: len(each[1]), default=("", []))
    return [(f"{name}.{i}".removeprefix("."), module) for i, module in enumerate(longest)]


def streams(block: nn.Module) -> int:
    """How many of them lie side by side in what passes the block: 2 in dnt's ResiDual and LaPE."""
    return getattr(block, "streams", 1)


def branches(block: nn.Module) -> dict[str, list[nn.Module]]:
    """ "attn", "mlp" -> the modules applied in turn to the residual stream to give the branch, before the addition.

    Dropout and drop-path after them are left out. {} if no row of BRANCHES knows the block, or it has two streams.
    """
    if streams(block) > 1:
        return {}
    modules = dict(block.named_modules(remove_duplicate=False))
    known = (row for row in BRANCHES if all(path in modules for paths in row.values() for path in paths))
    return {name: [modules[path] for path in paths] for name, paths in next(known, {}).items()}


def captured(modules: Iterable[nn.Module], run: Callable[[], Any]) -> dict[nn.Module, tuple[tuple, dict]]:
    """Positional and named arguments of each module's first call while run() runs, their tensors detached.

    A cache of keys and values is None in them: it would grow by each call that is given it.
    """
    calls: dict[nn.Module, tuple[tuple, dict]] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module not in calls:
            calls[module] = tree_map(kept, (args, kwargs), is_leaf=is_cache)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def kept(argument: Any) -> Any:
    if is_cache(argument):
        return None
    return argument.detach() if isinstance(argument, Tensor) else argument


def is_cache(argument: Any) -> bool:
    """Of transformers."""
    return hasattr(argument, "get_seq_length")


def chain(modules: Iterable[nn.Module], calls: Mapping[nn.Module, tuple[tuple, dict]]) -> Callable[[Tensor], Tensor]:
    """x -> the modules in turn, each with its other captured arguments; of a tuple that one returns, the first."""
    modules = list(modules)

    def applied(x: Tensor) -> Tensor:
        for module in modules:
            args, kwargs = calls[module]
            named = {} if args else {next(iter(kwargs)): x}  # Llama's attention is given its input by name
            found = module(*((x, *args[1:]) if args else ()), **kwargs | named)
            x = found[0] if isinstance(found, tuple) else found
        return x

    return applied
