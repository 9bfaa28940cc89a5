"""Where the norms sit: pure data, no torch.

The five positions are those of the DNT paper (arXiv 2507.17501, section 3 and its ablation S1 to S5).
"""

from dataclasses import dataclass

from dnt.lookup import lookup


@dataclass(frozen=True)
class Slots:
    """The norms N of one sublayer f: post(skip * x + mid(f(pre(x)))); an absent norm is the identity."""

    pre: bool = False
    mid: bool = False
    post: bool = False
    skip: float = 1.0

    def formula(self, f: str) -> str:
        branch = f"{f}(N(x))" if self.pre else f"{f}(x)"
        branch = f"N({branch})" if self.mid else branch
        total = f"{'' if self.skip == 1 else f'{self.skip:g} '}x + {branch}"
        return f"N({total})" if self.post else total


@dataclass(frozen=True)
class Placement:
    """Which positions of a Transformer are normalized.

    attn, mlp: the norms of the two sublayers. input: InputNorm, on embedding + position before block 1.
    qk: QKNorm, on each head's queries and keys, one gain of head width. final: the norm before the head.
    """

    attn: Slots
    mlp: Slots
    input: bool = False
    qk: bool = False
    final: bool = True
    source: str = ""

    @property
    def hides(self) -> bool:
        """Whether some branch does not see the scale of its matrices."""
        return self.qk or self.attn.mid or self.mlp.mid

    def formula(self) -> str:
        """The forward pass in one line."""
        start = "x = N(embed)" if self.input else "x = embed"
        attn = self.attn.formula("attn_qk" if self.qk else "attn")
        end = "head(N(x))" if self.final else "head(x)"
        return f"{start}; {attn}; {self.mlp.formula('mlp')}; {end}"


NONE, PRE, MID, PRE_MID = Slots(), Slots(pre=True), Slots(mid=True), Slots(pre=True, mid=True)
POST = Slots(post=True)

PLACEMENTS: dict[str, Placement] = {
    "pre-ln": Placement(attn=PRE, mlp=PRE, source="2002.04745; S1 of 2507.17501"),
    "s2": Placement(attn=PRE, mlp=PRE, qk=True, source="S2 of 2507.17501"),
    "s3": Placement(attn=PRE, mlp=PRE, qk=True, input=True, source="S3 of 2507.17501"),
    "s4": Placement(attn=PRE_MID, mlp=PRE_MID, qk=True, input=True, source="S4 of 2507.17501"),
    "dnt": Placement(attn=PRE_MID, mlp=MID, qk=True, input=True, source="S5 of 2507.17501, the default"),
    "dnt-no-input": Placement(attn=PRE_MID, mlp=MID, qk=True, source="dnt without InputNorm"),
    "dnt-no-pre": Placement(attn=MID, mlp=MID, qk=True, input=True, source="dnt without PreNorm"),
    "dnt-no-qk": Placement(attn=PRE_MID, mlp=MID, input=True, source="dnt without QKNorm"),
    "dnt-no-mid": Placement(attn=PRE, mlp=NONE, qk=True, input=True, source="dnt without MidNorm"),
    "input-only": Placement(attn=NONE, mlp=NONE, input=True, source="InputNorm alone"),
    "qk-only": Placement(attn=NONE, mlp=NONE, qk=True, source="QKNorm alone"),
    "mid-only": Placement(attn=MID, mlp=MID, source="MidNorm alone"),
    "no-norm": Placement(attn=NONE, mlp=NONE, source="the norm before the head alone"),
    "post-ln": Placement(attn=POST, mlp=POST, final=False, source="1706.03762"),
    "peri-ln": Placement(attn=PRE_MID, mlp=PRE_MID, source="2502.02732, without its optional input norm"),
}


def placement_named(placement: str | Placement) -> Placement:
    """A placement by name, or the one given."""
    return placement if isinstance(placement, Placement) else lookup(PLACEMENTS, placement, "placement")
