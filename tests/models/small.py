"""A small model of each family, with DCLS."""

from dcls_jax import DclsConfig
from dcls_jax.models import Backbone, create_model
from tests.conftest import slow

# One of each, whose other models differ in depths, widths and the places of attention alone.
FAMILIES = ("resnet50", "convnext_tiny", "caformer_s18", "fastvit_sa24")
SMALL = {"depths": (1, 1), "dims": (8, 32), "num_classes": 4, "dcls": DclsConfig(3, 5, "v1")}
MODELS = {
    "resnet50": {},
    "convnext_tiny": {},
    "caformer_s18": {"token_mixers": ("convolution", "attention")},
    "fastvit_sa24": {},
}
# For what all families have from `Backbone`: between them every kind of layer.
ONE = [slow(name) if name != "caformer_s18" else name for name in MODELS]  # for what takes long
SOME = [slow("resnet50"), slow("convnext_tiny"), "caformer_s18", "fastvit_sa24"]


def small(name: str, **options: object) -> Backbone:
    """Two stages of one block; options are `create_model`'s."""
    return create_model(name, **SMALL | MODELS[name] | options)
