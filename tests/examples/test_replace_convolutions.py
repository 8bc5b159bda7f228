import jax.numpy as jnp
import pytest
import replace_convolutions as example
from flax import nnx

from dcls_jax import DclsConfig
from dcls_jax.training import replace_convolutions, replaced


@pytest.mark.long
def test_the_network_becomes_dcls_and_says_the_same(assert_close, capsys):
    example.main(steps=2)
    said = capsys.readouterr().out
    assert "made DCLS: blocks.0.depthwise; the output moves by" in said
    model = example.Net(rngs=nnx.Rngs(0))
    config = DclsConfig(kernel_count=9, dilated_kernel_size=13, version="v1")
    dcls = replace_convolutions(model, config, keep_weights=True, rngs=nnx.Rngs(0))
    images, labels = example.draw(example.jax.random.key(0))
    assert_close(dcls(images), model(images), 1e-5)
    before = next(iter(replaced(dcls).values())).positions.P[...]
    trained = example.train(dcls, 3, seed=0)
    moved = jnp.abs(next(iter(replaced(trained).values())).positions.P[...] - before)
    assert float(moved.min()) > 1e-3
    assert set(labels.tolist()) == {0, 1}


@pytest.mark.long
def test_it_sees_farther_with_dcls():
    plain, with_dcls = example.main()
    assert plain < 0.65
    assert with_dcls > 0.9
