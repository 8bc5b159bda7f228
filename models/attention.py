"""Self-attention, as MetaFormer and FastViT have it."""

import jax
from einops import rearrange
from jax import Array


def self_attention(qkv: Array, head_dim: int) -> Array:
    """Every pixel attends to all (arXiv 1706.03762): queries, keys and values (B, H, W, 3 * inner) -> (B, H, W, inner).

    The queries are scaled, as timm has it, not the scores: between scores and softmax, XLA contracts a product into the
    difference to the maximum, which was rounded without, and from scores of 1e9 on the exponential overflows.
    """
    _, height, width, _ = qkv.shape
    q, k, v = rearrange(qkv, "b h w (qkv heads d) -> qkv b (h w) heads d", qkv=3, d=head_dim)
    attended = jax.nn.dot_product_attention(q * head_dim**-0.5, k, v, scale=1.0)
    return rearrange(attended, "b (h w) heads d -> b h w (heads d)", h=height, w=width)
