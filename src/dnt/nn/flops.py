"""What a training step must compute, counted from the shapes. No torch."""

from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.placement import placement_named


def training_flops(config: GPTConfig | ViTConfig) -> int:
    """Floating-point operations of one sample (a sequence, an image), forward and backward; 2 a multiply-add.

    6 N T + 12 L D T^2 (2204.02311, appendix B) with T tokens, L blocks of width D and N numbers in matrices: forward
    takes 2 for each of them and each token, backward 4. A head counts, tied or not; embeddings are looked up and do
    not. Causal attention counts half of its term, since a token sees half of the others on average. The head of a ViT
    sees one token, its patch embedding no class token and no gradient of the image: 4 for each number of it.

    Norms, activations, softmax, the optimizer and what is computed a second time (recompute) are not counted.
    """
    match config:
        case GPTConfig():
            tokens, ends, share = config.context, 6 * config.vocab_size * config.dim * config.context, 0.5
        case ViTConfig():
            patches = config.side**config.in_dims
            patch = config.channels * config.patch_size**config.in_dims
            tokens, ends, share = config.tokens, config.dim * (4 * patch * patches + 6 * config.classes), 1.0
    attention = 12 * config.depth * config.dim * tokens**2 * share
    return 6 * block_matrices(config) * tokens + int(attention) + ends


def block_matrices(config: GPTConfig | ViTConfig) -> int:
    """Numbers in the matrices of all blocks."""
    qkv = config.dim + 2 * (config.kv_heads or config.heads) * config.head_dim
    up = config.hidden * (2 if config.activation == "swiglu" else 1)
    blocks = config.depth * config.dim * (qkv + config.dim + up + config.hidden)
    if placement_named(config.placement).block in ("sas", "sas-p"):  # values in the first block alone, and no W_o
        return blocks - (2 * config.depth - 1) * config.dim**2
    return blocks
