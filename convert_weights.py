"""`python convert_weights.py` is `dcls-jax convert`: a published PyTorch checkpoint -> an Orbax checkpoint."""

from etils import epy

with epy.lazy_api_imports(globals()):  # the command itself is to be there before JAX is
    from dcls_jax.models.convert import Conversion, convert

__all__ = ["Conversion", "convert"]

if __name__ == "__main__":
    from dcls_jax.eval.cli import convert_weights

    convert_weights()
