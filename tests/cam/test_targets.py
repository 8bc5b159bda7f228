"""What is explained: scalars of any output, as pytrees and as functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcls_jax.cam.targets import (
    Binary,
    Boxes,
    Contrast,
    Logit,
    LogProbability,
    Negative,
    Probability,
    Region,
    Rest,
    Sigmoid,
    Similarity,
    as_pytree,
    check_targets,
    nearest_classes,
    regression,
    scores,
)

LOGITS = jnp.array([[1.0, 3.0, -1.0, 2.0], [0.5, 0.0, 4.0, -2.0]])
LABELS = jnp.array([3, 0])
LOG_SOFTMAX = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(1, keepdims=True))
REFERENCES = jnp.array([[0, 1], [1, 3]])
ROWS = np.arange(2)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (LABELS, [2, 0.5]),
        ([3, 0], [2, 0.5]),
        (np.array([[0, 0, 0, 1], [0.5, 0.5, 0, 0]]), [2, 0.25]),
        (lambda logits: logits[1] - logits[0], [2, -0.5]),
        (Logit(LABELS), [2, 0.5]),
        (Probability(LABELS), np.exp(LOG_SOFTMAX)[ROWS, LABELS]),
        (LogProbability(LABELS), LOG_SOFTMAX[ROWS, LABELS]),
        (Rest(LABELS), np.array([2, 0.5]) + LOG_SOFTMAX[ROWS, LABELS]),
        (Contrast(LABELS, REFERENCES), [2 - (1 + 3) / 2, 0.5 - (0 - 2) / 2]),
        (Contrast(LABELS, REFERENCES, 0.6), [2 - 0.6 * 2, 0.5 + 0.6 * 1]),
        (Negative(LABELS), [-2, -0.5]),
        (Negative(Logit(LABELS)), [-2, -0.5]),
        (Negative(jax.nn.one_hot(LABELS, 4)), [-2, -0.5]),
    ],
)
def test_scores_of_logits(targets, expected, assert_close):
    assert_close(scores(LOGITS, targets), expected, 1e-6)
    check_targets(targets, LOGITS)
    tree = as_pytree(targets)  # goes through jit, and is cut like the images
    assert_close(jax.jit(scores)(LOGITS, tree), expected, 1e-6)
    assert_close(scores(LOGITS[1:], jax.tree.map(lambda x: x[1:], tree)), expected[1:], 1e-6)


def test_no_target_is_taken_for_another():
    single = [target(LABELS) for target in (Logit, Probability, LogProbability, Rest)]
    pairs = [Contrast(LABELS, REFERENCES, *static) for static in ((1.0,), (0.6,), (1.0, True))]
    targets = [
        *single,
        *pairs,
        Negative(LABELS),
        *map(Negative, single),
        Similarity(REFERENCES),
        Region(LABELS, REFERENCES),
    ]
    structures = [jax.tree.structure(target) for target in targets]
    equal = [(a, b) for i, a in enumerate(structures) for b in structures[:i] if a == b]
    assert not equal  # a program in jit's cache is found by hash and equality


def test_weighted_contrast_is_the_authors_and_differentiates_its_weights(assert_close):
    def authors(logits, label, references):  # pytorch-grad-cam's FinerWeightedTarget
        weights = jax.nn.softmax(logits)[references]
        return (weights * (logits[label] - 0.7 * logits[references])).sum() / (weights.sum() + 1e-9)

    def ours(logits):
        return scores(logits, Contrast(LABELS, REFERENCES, 0.7, weighted=True)).sum()

    value, gradient = jax.jit(jax.value_and_grad(ours))(LOGITS)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(authors)))(LOGITS, LABELS, REFERENCES)
    assert_close(value, values.sum(), 1e-6)
    assert_close(gradient, gradients, 1e-6)


def test_nearest_classes_leave_out_the_class_itself():
    np.testing.assert_array_equal(nearest_classes(LOGITS, LABELS, 2).sort(1), [[0, 1], [1, 3]])
    np.testing.assert_array_equal(nearest_classes(jnp.zeros((1, 3)), jnp.array([1]), 2).sort(1), [[0, 2]])
    with pytest.raises(ValueError, match="count"):
        nearest_classes(LOGITS, LABELS, 4)


def test_regression_takes_a_single_output():
    np.testing.assert_array_equal(scores(jnp.array([3.0, 4.0]), regression), [3, 4])
    np.testing.assert_array_equal(scores(jnp.array([[3.0], [4.0]]), regression), [3, 4])
    np.testing.assert_array_equal(scores(jnp.array([3.0, 4.0]), jnp.array([1.0, -1.0])), [3, -4])


def test_similarity_is_the_cosine_and_finite_for_zero_vectors(assert_close):
    embeddings = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    targets = Similarity(jnp.array([[6.0, 8.0], [1.0, 0.0]]))
    assert_close(scores(embeddings, targets), [1, 0], 1e-6)
    gradient = jax.grad(lambda x: scores(x, targets).sum())(embeddings)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)  # along itself a cosine does not change


def test_region_is_the_mean_over_its_mask(assert_close):
    logits = jnp.arange(2 * 2 * 3 * 4, dtype=jnp.float32).reshape(2, 2, 3, 4)
    masks = jnp.zeros((2, 2, 3), bool).at[0, 1].set(True)
    targets = Region(LABELS, masks)
    check_targets(targets, logits)
    assert_close(scores(logits, targets), [logits[0, 1, :, 3].mean(), 0], 1e-6)


def test_functions_are_told_from_pytrees():
    for function in (regression, lambda logits: logits[0]):
        assert not jax.tree.leaves(as_pytree(function))
    assert jax.tree.leaves(as_pytree(Logit(LABELS)))[0] is LABELS
    labelled = jax.tree_util.Partial(lambda label, logits: logits[label], LABELS)
    assert as_pytree(labelled) is labelled


@pytest.mark.parametrize(
    ("targets", "shape", "message"),
    [
        (jnp.array([0, 4]), (2, 4), "label 4, but the model has classes 0 to 3"),
        (Probability(jnp.array([0, -1])), (2, 4), "label -1"),
        (Contrast(LABELS, jnp.array([[0], [9]])), (2, 4), "label 9"),
        (jnp.array([0.0, 1.0]), (2, 4), r"shape \(2,\) and dtype float32, expected int labels \(2,\), soft labels"),
        (jnp.array([0, 1, 2]), (2, 4), r"shape \(3,\)"),
        (LABELS, (2, 8, 8, 4), r"expected soft labels \(2, 8, 8, 4\)"),
        (Logit(jnp.array([1])), (2, 4), "leading axis of 2"),
        (Logit([1, 2]), (2, 4), "targets hold int, expected arrays"),
        (Negative(regression), (2, 1), "targets hold function"),
        (lambda logits: logits, (2, 4), r"targets give shape \(4,\)"),
        (Logit(LABELS), (2, 8, 4), r"targets give shape \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(targets, shape, message):
    with pytest.raises(ValueError, match=message):
        check_targets(targets, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_sigmoid_and_binary(assert_close):
    assert_close(scores(LOGITS, Sigmoid(LABELS)), 1 / (1 + np.exp([-2, -0.5])), 1e-6)
    for logits in (jnp.array([3.0, 4.0]), jnp.array([[3.0], [4.0]])):
        assert_close(scores(logits, Binary(jnp.array([1, 0]))), [3, -4], 1e-6)
        check_targets(Binary(jnp.array([1, 0])), logits)
        with pytest.raises(ValueError, match="label 2, but the model has classes 0 to 1"):
            check_targets(Binary(jnp.array([1, 2])), logits)


def test_boxes_count_what_is_near_and_of_the_class(assert_close):
    boxes = jnp.array([[0.0, 0, 4, 4], [10, 10, 14, 14], [0, 0, 4, 2]])
    output = {"boxes": boxes[None], "labels": jnp.array([[1, 2, 1]]), "scores": jnp.array([[0.9, 0.8, 0.7]])}
    wanted = jnp.array([[[0.0, 0, 4, 3], [10, 10, 14, 14], [10, 10, 14, 14], [20, 20, 24, 24], [0, 0, 4, 4]]])
    labels = jnp.array([[1, 2, 1, 1, -1]])
    counted = jax.jit(scores)
    # the first overlaps the first by 12 of 16; the second is found; then another class, nothing near, and none
    assert_close(counted(output, Boxes(wanted, labels)), [0.75 + 0.9 + 1 + 0.8], 1e-6)
    check_targets(Boxes(wanted, labels), output)
    assert_close(counted(output, Boxes(wanted, labels, overlap=0.8)), [1 + 0.8], 1e-6)
    gradient = jax.grad(lambda s: counted(output | {"scores": s}, Boxes(wanted, labels)).sum())(output["scores"])
    assert_close(gradient, [[1, 1, 0]], 1e-6)
