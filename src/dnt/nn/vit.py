"""ViT with any placement: a classifier of images or volumes (V-DNT when the placement is "dnt")."""
# B batch, C channels, S the axes of an image (H W, or D H W), T tokens, D width

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnt.nn.config import ViTConfig, vit_config
from dnt.nn.init import initialize
from dnt.nn.layers import ClassToken
from dnt.nn.ngpt import unit_weights
from dnt.nn.placement import placement_named
from dnt.nn.reparametrized import reparametrize, stored
from dnt.nn.stack import around_patches, closing, forking, head_of, opening, placing, stack

PATCH_EMBEDDINGS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


class ViT(nn.Module):
    """Patches and class token plus positions, `depth` blocks whose tokens see each other, a linear head (2010.11929).

    With placement="pre-ln", norm="layernorm", bias=True it is timm's VisionTransformer, with pool="mean" the one that
    has no class token and its final norm before the pooling (fc_norm=False).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.pixel_norm, self.patch_norm = around_patches(config)
        self.patches = PATCH_EMBEDDINGS[config.in_dims](
            config.channels, config.stream, config.patch_size, stride=config.patch_size, bias=config.bias
        )
        self.class_token = ClassToken(config.stream) if config.pool == "cls" else nn.Identity()
        if config.positions == "learned":
            self.positions = nn.Embedding(config.tokens, config.stream)
        self.place = placing(config)
        self.input_norm = opening(config)
        self.drop = forking(config)
        self.blocks = stack(config, causal=False)
        self.final_norm = closing(config)
        self.head = head_of(config, config.classes, config.bias)
        self.recompute = False  # as in GPT
        initialize(self, config)
        reparametrize(self, config.parametrization)
        self.after_step()

    def after_step(self) -> None:
        """As of GPT."""
        if placement_named(self.config.placement).prescribes.unit_weights:
            unit_weights(self)

    @property
    def ends(self) -> dict[str, list[nn.Module]]:
        """Where images enter and predictions leave, by kind."""
        positions: list[nn.Module] = [self.positions] if self.config.positions == "learned" else []
        return {"embedding": [self.patches, self.class_token], "position": positions, "head": [self.head]}

    def forward(self, images_BCS: Tensor) -> Tensor:
        """images (B, C, H, W), or (B, C, D, H, W) for in_dims=3, float -> scores (B, classes)."""
        x_BTD = self.hidden(images_BCS)
        return self.head(x_BTD[:, 0] if self.config.pool == "cls" else x_BTD.mean(1))

    def hidden(self, images_BCS: Tensor) -> Tensor:
        """What is pooled, (B, T, D): after the final norm, the class token first if there is one."""
        config = self.config
        if images_BCS.shape[1:] != config.image_shape:
            known = ", ".join(map(str, config.image_shape))
            raise ValueError(f"got images of shape {tuple(images_BCS.shape)}; this model reads (B, {known}).")
        x_BTD = self.patch_norm(self.patches(self.pixel_norm(images_BCS)).flatten(2).transpose(1, 2))
        if config.positions == "learned":
            positions_TD = self.positions.weight
        else:
            of_patches = sincos(config.side, config.in_dims, config.dim, images_BCS.device)
            without = config.tokens - len(of_patches)  # the class token
            positions_TD = F.pad(of_patches, (0, 0, without, 0)).to(stored(self.patches).dtype)
        x_BTD = self.drop(self.input_norm(self.place(self.class_token(x_BTD), positions_TD)))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, use_reentrant=False)
            else:
                x_BTD = block(x_BTD)
        return self.final_norm(x_BTD)

    measures: ClassVar[tuple[str, ...]] = ("loss", "top1", "top5")

    def measure(self, images_BCS: Tensor, labels_B: Tensor) -> Tensor:
        """What an evaluation reports the means of, of each label, 0 where it is -1, by the names in `measures`; (3, B).

        top1, top5: whether a label has the highest score, or one of the five highest.
        """
        scores = self(images_BCS).to(torch.float32)
        best = scores.topk(min(5, scores.shape[-1])).indices == labels_B[:, None]
        loss = F.cross_entropy(scores, labels_B, ignore_index=-1, reduction="none")
        return torch.stack([loss, best[:, 0].to(loss), best.any(1).to(loss)])

    def loss(self, images_BCS: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats, at least in float32; () tensor.

        labels: class ids (B,) int64, of which -1 is ignored, or probabilities (B, classes) float.
        """
        scores = self(images_BCS)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        soft = labels.ndim == 2
        return F.cross_entropy(scores, labels.to(scores.dtype) if soft else labels, ignore_index=-1)


def sincos(side: int, axes: int, width: int, device: torch.device) -> Tensor:
    """(T, D) float32: the sines, then the cosines, of coordinate * 10000^(-i / F) for each axis and i < F = D / 2 axes.

    The T = side^axes points of a grid, the last coordinate fastest (1706.03762; per axis as in 2111.06377).
    """
    count = width // (2 * axes)
    frequencies = 10_000.0 ** (-torch.arange(count, device=device) / count)
    coordinates = torch.cartesian_prod(*[torch.arange(side, device=device)] * axes)
    angles = coordinates[:, :, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(1)


def vit(size: str, **fields: Any) -> ViT:
    """A ViT of a named size (vit-tiny, -small, -base, -large, -huge) with any field of ViTConfig changed."""
    return ViT(vit_config(size, **fields))
