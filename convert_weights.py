"""`python convert_weights.py` is `dcls-jax convert`: a published PyTorch checkpoint -> an Orbax checkpoint."""

from dcls_jax.models.convert import Conversion, convert

__all__ = ["Conversion", "convert"]

if __name__ == "__main__":
    from dcls_jax.eval.cli import convert_weights

    convert_weights()
