"""Where the norms sit, and what else a method prescribes: pure data, no torch.

The five positions are those of the DNT paper (arXiv 2507.17501, section 3 and its ablation S1 to S5); the other rows
are the rivals, of which docs/zoo.md says what differs from their public code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log, sqrt
from typing import Any

from dnt.lookup import lookup
from dnt.nn.rates import RATES

BY_DEPTH: dict[str, Callable[[int, int], float]] = {  # of block l = 1 ... L
    "l^(-1/2)": lambda block, L: block**-0.5,
    "1/L": lambda block, L: 1 / L,
    "(2L)^(1/4)": lambda block, L: (2 * L) ** 0.25,
    "(8L)^(-1/4)": lambda block, L: (8 * L) ** -0.25,
    "sqrt(ln 2L)": lambda block, L: sqrt(log(2 * L)),
}
Factor = float | str  # a number, or a row of BY_DEPTH


def factor(value: Factor, layer: int, depth: int) -> float:
    """The number that a factor is in block `layer`, counted from 0, of `depth`."""
    return lookup(BY_DEPTH, value, "factor")(layer + 1, depth) if isinstance(value, str) else value


@dataclass(frozen=True)
class Slots:
    """The norms N of one sublayer f: post(skip * x + mid(f(pre(x)))); an absent norm is the identity.

    inner: before the last matrix of f, on what all heads or the activations give. scale: of what pre gives. gain: the
    branch has a learned vector, which begins there; multiplier: a learned number, likewise. skip_gain: x has a vector,
    which begins at 1.
    """

    pre: bool = False
    mid: bool = False
    post: bool = False
    skip: Factor = 1.0
    inner: bool = False
    scale: Factor = 1.0
    gain: Factor | None = None
    multiplier: Factor | None = None
    skip_gain: bool = False

    @property
    def norms(self) -> int:
        return self.pre + self.mid + self.post + self.inner

    def formula(self, f: str) -> str:
        f = f"{f}[N]" if self.inner else f
        x = "N(x)" if self.pre else "x"
        branch = f"{f}({times(self.scale, x)})"
        branch = f"N({branch})" if self.mid else branch
        branch = f"a {branch}" if self.gain is not None or self.multiplier is not None else branch
        total = f"{'b x' if self.skip_gain else times(self.skip, 'x')} + {branch}"
        return f"N({total})" if self.post else total


def blocks(share: int | float, depth: int) -> int:
    """So many blocks, or a share of all, rounded down; 0.58 of 50 is 29, though 0.58 * 50 is a little less."""
    return share if isinstance(share, int) else int(share * depth + 1e-9)


def times(value: Factor, x: str) -> str:
    return x if value == 1 else f"{value if isinstance(value, str) else f'{value:g}'} {x}"


@dataclass(frozen=True)
class Prescription:
    """What a method says of more than its norms, applied when a model is built or trained.

    norm: a row of NORMS, that of the config if "". init: a row of dnt.nn.init.INITS, likewise. weights: how linear
    layers are parametrized (dnt.nn.reparametrized), likewise. decay, warmup: whether it is trained with them.
    unit_weights: after each step every matrix is divided by its norms along the width of the model. rates: of an
    optimizer the least and the largest learning rate with which it was seen to train (dnt.nn.rates).
    """

    norm: str = ""
    init: str = ""
    weights: str = ""
    decay: bool = True
    warmup: bool = True
    unit_weights: bool = False
    rates: tuple[tuple[str, float, float], ...] = ()

    def __str__(self) -> str:
        said = [f"{name} {value}" for name in ("norm", "init", "weights") if (value := getattr(self, name))]
        said += [f"no {what}" for what, given in (("decay", self.decay), ("warm-up", self.warmup)) if not given]
        said += ["unit weights"] if self.unit_weights else []
        return ", ".join(said)

    def trains_at(self) -> str:
        """The learning rates."""
        return ", ".join(f"{name} {least:g} to {most:g}" for name, least, most in self.rates)


@dataclass(frozen=True)
class Placement:
    """Which positions of a Transformer are normalized, and how else it departs from the usual one.

    attn, mlp: the norms of the two sublayers. input: InputNorm, on embedding + position before block 1. qk: QKNorm,
    on each head's queries and keys, one gain of head width; or a row of QK_NORMS. after_rotary: QKNorm follows the
    rotary positions. v: likewise of the values. final: the norm before the head. patch: norms before and after the
    embedding of patches. embed_gain: a GPT's embedding + position has a learned factor, which begins at sqrt(D).
    attention: a row of dnt.nn.attention.ATTENTIONS. head_scale: a learned number for each head. block: a row of
    dnt.nn.stack.BLOCKS, where the formula of Slots does not fit. layers: other placements for the blocks, from the
    first, each for so many blocks, or for a share of them; the last for the rest.
    """

    attn: Slots
    mlp: Slots
    input: bool = False
    qk: bool | str = False
    final: bool = True
    source: str = ""
    after_rotary: bool = False
    v: bool = False
    patch: bool = False
    embed_gain: bool = False
    attention: str = "softmax"
    head_scale: bool = False
    block: str = "sublayers"
    prescribes: Prescription = field(default_factory=Prescription)
    layers: tuple[tuple["Placement", int | float], ...] = ()

    def __post_init__(self) -> None:
        """ValueError for layers that cannot follow on one another."""
        if any(share == 0 for _, share in self.layers[:-1]):
            raise ValueError("in layers all parts but the last need a number of blocks, as in post-ln:4,pre-ln.")
        if any(placement.layers for placement, _ in self.layers):
            raise ValueError("a part of a placement in layers is itself in layers; write its own parts out.")
        one, *others = dict.fromkeys(placement.shared() for placement in (self, *(part for part, _ in self.layers)))
        if others:
            raise ValueError(
                "these placements do not go into one model, as they differ in more than the norms of a block: "
                f"{'; '.join([one, *others])}."
            )

    def shared(self) -> str:
        """What all blocks of a model must share; the initialization is each block's own."""
        prescribed = str(replace(self.prescribes, init="", rates=())) or "nothing prescribed"
        return f"{BLOCK_FORMULAS[self.block]}, {prescribed}" if self.block in BLOCK_FORMULAS else prescribed

    @property
    def hides(self) -> bool:
        """Whether some branch does not see the scale of its matrices."""
        if self.layers:
            return any(placement.hides for placement, _ in self.layers)
        return bool(self.qk or self.v or any(s.mid or s.inner for s in (self.attn, self.mlp)))

    def of_blocks(self, depth: int) -> list["Placement"]:
        """That of each block. ValueError if the layers are not as many as there are blocks."""
        if not self.layers:
            return [self] * depth
        *first, (last, share) = self.layers
        found = [placement for placement, part in first for _ in range(blocks(part, depth))]
        rest = max(0, depth - len(found))
        named = len(found) + (blocks(share, depth) if share else rest)
        if named != depth:
            raise ValueError(f"the placement names {named} blocks, the model has {depth}; leave out the last number.")
        if not rest or any(not blocks(part, depth) for _, part in first):
            raise ValueError(f"of a model of {depth} blocks a part of the placement gets none; give it more blocks.")
        return found + [last] * rest

    def formula(self) -> str:
        """The forward pass in one line."""
        embed = "s embed" if self.embed_gain else "embed"
        start = f"x = N({embed})" if self.input else "x = N(W N(patch)) + position" if self.patch else f"x = {embed}"
        if self.layers:
            parts = []
            for i, (placement, share) in enumerate(self.layers):
                count = "rest" if i == len(self.layers) - 1 else f"{share:.0%}" if isinstance(share, float) else share
                parts.append(f"[{count}] {placement.of_block()}")
            middle = " ".join(parts)
        else:
            middle = self.of_block()
        return f"{start}; {middle}; {self.ends_in()}"

    def of_block(self) -> str:
        if self.block in BLOCK_FORMULAS:
            return BLOCK_FORMULAS[self.block]
        name = {"softmax": "attn"}.get(self.attention, f"{self.attention}-attn")
        qk = f"{self.qk}-qk" if isinstance(self.qk, str) and self.qk else "qk"
        marks = [qk + "-after-rotary" * self.after_rotary] * bool(self.qk)
        marks += ["v"] * self.v + ["head-scale"] * self.head_scale
        attn = f"{name}_{'+'.join(marks)}" if marks else name
        return f"{self.attn.formula(attn)}; {self.mlp.formula('mlp')}"

    def ends_in(self) -> str:
        if self.block == "residual":
            return "head(x + N(d))"
        if self.block == "ngpt":
            return "s_z head(x)"
        return "head(N(x))" if self.final else "head(x)"


BLOCK_FORMULAS = {  # of the rows of dnt.nn.stack.BLOCKS that are no sublayers
    "residual": "x, d = N(x + f(x)), d + f(x)",
    "ngpt": "U(x + a (U(f(x)) - x)) with U(x) = x / |x|",
    "lape": "x + attn(N(x) + p); x + mlp(N(x)); p = N(p)",
    "sas": "a A N(x); b x + c mlp(N(x)) with A = a 1 + b softmax(q k) - c / t",
    "sas-p": "y = N(x); a A y + c mlp(y) with A as in sas",
}
QK_NORMS = ("layernorm", "rmsnorm", "all-heads", "unit", "cosine")  # beside True; made in dnt.nn.layers

NONE, PRE, MID, PRE_MID = Slots(), Slots(pre=True), Slots(mid=True), Slots(pre=True, mid=True)
POST = Slots(post=True)
HYBRID = Placement(attn=POST, mlp=NONE, qk=True, v=True)

PLACEMENTS: dict[str, Placement] = {
    "pre-ln": Placement(attn=PRE, mlp=PRE, source="2002.04745; S1 of 2507.17501"),
    "s2": Placement(attn=PRE, mlp=PRE, qk=True, source="S2 of 2507.17501; QKNorm as in Qwen3"),
    "s3": Placement(attn=PRE, mlp=PRE, qk=True, input=True, source="S3 of 2507.17501"),
    "s4": Placement(attn=PRE_MID, mlp=PRE_MID, qk=True, input=True, source="S4 of 2507.17501"),
    "dnt": Placement(attn=PRE_MID, mlp=MID, qk=True, input=True, source="S5 of 2507.17501, the default"),
    "dnt-no-input": Placement(attn=PRE_MID, mlp=MID, qk=True, source="dnt without InputNorm"),
    "dnt-no-pre": Placement(attn=MID, mlp=MID, qk=True, input=True, source="dnt without PreNorm"),
    "dnt-no-qk": Placement(attn=PRE_MID, mlp=MID, input=True, source="dnt without QKNorm"),
    "dnt-no-mid": Placement(attn=PRE, mlp=NONE, qk=True, input=True, source="dnt without MidNorm"),
    "input-only": Placement(attn=NONE, mlp=NONE, input=True, source="InputNorm alone"),
    "qk-only": Placement(attn=NONE, mlp=NONE, qk=True, source="QKNorm alone"),
    "mid-only": Placement(attn=MID, mlp=MID, source="MidNorm alone, the reordered norm of 2111.09883"),
    "no-norm": Placement(attn=NONE, mlp=NONE, source="the norm before the head alone"),
    "post-ln": Placement(attn=POST, mlp=POST, final=False, source="1706.03762"),
    "peri-ln": Placement(attn=PRE_MID, mlp=PRE_MID, source="2502.02732 without its input norm; Sandwich of 2105.13290"),
    "reordered": Placement(attn=MID, mlp=MID, qk="all-heads", source="2501.00656 (OLMo 2)"),
    "normformer": Placement(
        attn=PRE_MID, mlp=Slots(pre=True, inner=True, skip_gain=True), head_scale=True, source="2110.09456"
    ),
    "deepnorm": Placement(
        attn=Slots(post=True, skip="(2L)^(1/4)"),
        mlp=Slots(post=True, skip="(2L)^(1/4)"),
        final=False,
        prescribes=Prescription(init="deepnorm"),
        source="2203.00555",
    ),
    "sub-ln": Placement(
        attn=Slots(pre=True, inner=True),
        mlp=Slots(pre=True, inner=True),
        prescribes=Prescription(init="sub-ln"),
        source="2210.06423 (Magneto)",
    ),
    "ln-scaling": Placement(
        attn=Slots(pre=True, scale="l^(-1/2)"),
        mlp=Slots(pre=True, scale="l^(-1/2)"),
        prescribes=Prescription(init="plain"),
        source="2502.05795",
    ),
    "hybridnorm": replace(HYBRID, prescribes=Prescription(init="gpt2"), source="2503.04598"),
    "residual": Placement(attn=POST, mlp=POST, block="residual", source="2304.14802 (ResiDual)"),
    "ngpt": Placement(
        attn=NONE,
        mlp=NONE,
        final=False,
        block="ngpt",
        prescribes=Prescription(init="ngpt", decay=False, warmup=False, unit_weights=True),
        source="2410.01131",
    ),
    "qknorm-henry": Placement(attn=PRE, mlp=PRE, qk="unit", source="2010.04245"),
    "qknorm-layernorm": Placement(attn=PRE, mlp=PRE, qk="layernorm", source="2302.05442 (ViT-22B)"),
    "qknorm-rotary": Placement(
        attn=PRE,
        mlp=PRE,
        qk="rmsnorm",
        after_rotary=True,
        source="s2 with QKNorm after the rotary positions (nanochat)",
    ),
    "pre-crmsnorm": Placement(attn=PRE, mlp=PRE, prescribes=Prescription(norm="crmsnorm"), source="2305.14858"),
    "dyt": Placement(attn=PRE, mlp=PRE, embed_gain=True, prescribes=Prescription(norm="dyt"), source="2503.10622"),
    "sas": Placement(
        attn=Slots(pre=True, skip=0.0, multiplier=1.0),
        mlp=Slots(pre=True, multiplier=0.1),
        block="sas",
        prescribes=Prescription(init="sas"),
        source="2311.01906",
    ),
    "sas-p": Placement(
        attn=Slots(skip=0.0, multiplier=1.0),
        mlp=Slots(skip=0.0, multiplier=0.1),
        block="sas-p",
        prescribes=Prescription(init="sas"),
        source="2311.01906",
    ),
    "lipsformer": Placement(
        attn=Slots(post=True, gain="1/L"),
        mlp=Slots(post=True, gain="1/L"),
        qk="cosine",
        final=False,
        prescribes=Prescription(norm="centernorm", init="spectral", warmup=False),
        source="2304.09856",
    ),
    "sigma-reparam": Placement(
        attn=NONE,
        mlp=NONE,
        final=False,
        prescribes=Prescription(weights="sigma-reparam", init="plain", decay=False, warmup=False),
        source="2303.06296",
    ),
    "fixup": Placement(
        attn=Slots(pre=True, inner=True, multiplier=1.0),
        mlp=Slots(pre=True, inner=True, multiplier=1.0),
        prescribes=Prescription(norm="shift", init="fixup"),
        source="1901.09321",
    ),
    "relu-attention": Placement(attn=PRE, mlp=PRE, attention="relu", source="2309.08586"),
    "dual-patchnorm": Placement(attn=PRE, mlp=PRE, patch=True, source="2302.01327 (ViT)"),
    "lape": Placement(attn=PRE, mlp=PRE, block="lape", source="2212.05262 (ViT)"),
}
PLACEMENTS["mix-ln"] = replace(
    PLACEMENTS["pre-ln"], layers=((PLACEMENTS["post-ln"], 0.25), (PLACEMENTS["pre-ln"], 0)), source="2412.13795"
)
PLACEMENTS["hybridnorm-star"] = replace(
    PLACEMENTS["hybridnorm"],
    layers=((replace(HYBRID, attn=PRE, mlp=PRE), 1), (PLACEMENTS["hybridnorm"], 0)),
    source="2503.04598 (HybridNorm*)",
)
for _name, _rates in RATES.items():
    PLACEMENTS[_name] = replace(PLACEMENTS[_name], prescribes=replace(PLACEMENTS[_name].prescribes, rates=_rates))


def placement_named(placement: str | Placement) -> Placement:
    """A placement by name, or the one given; "post-ln:4,pre-ln" or "post-ln:25%,pre-ln" has one for each part."""
    if isinstance(placement, Placement):
        return placement
    if placement in PLACEMENTS or not ({",", ":"} & set(placement)):
        return lookup(PLACEMENTS, placement, "placement")
    return in_layers([part(entry, placement) for entry in placement.split(",")])


def part(entry: str, spec: str) -> tuple[Placement, int | float]:
    """NAME[:BLOCKS|:SHARE%] of a placement in layers."""
    name, _, share = entry.strip().partition(":")
    placement = lookup(PLACEMENTS, name, f"placement (in {spec!r})")
    if not share:
        return placement, 0
    number = share.removesuffix("%")
    if not number.isdecimal() or int(number) == 0 or (share.endswith("%") and int(number) > 100):
        raise ValueError(f"placement got {spec!r}; write NAME:BLOCKS or NAME:SHARE%, e.g. post-ln:4,pre-ln.")
    return placement, int(number) / 100 if share.endswith("%") else int(number)


def in_layers(parts: list[tuple[Placement, int | float]]) -> Placement:
    """One placement of several, from the first block on. What stands before the blocks is of the first part, what
    stands after them of the last.
    """
    (first, _), (last, _) = parts[0], parts[-1]
    before = {name: getattr(first, name) for name in ("input", "patch", "embed_gain")}
    return replace(last, **before, layers=tuple(parts), source="")


def placement_from(fields: dict[str, Any]) -> Placement:
    """Of what dataclasses.asdict, and JSON, made of one."""
    own: dict[str, Any] = {"attn": Slots(**fields["attn"]), "mlp": Slots(**fields["mlp"])}
    if "prescribes" in fields:
        rates = tuple(tuple(rate) for rate in fields["prescribes"]["rates"])
        own["prescribes"] = Prescription(**fields["prescribes"] | {"rates": rates})
    own["layers"] = tuple((placement_from(placement), share) for placement, share in fields.get("layers", ()))
    return Placement(**fields | own)
