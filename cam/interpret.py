"""Running a traced function under other rules than its own, without an edit to the model that it came from."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var

Rule = Callable[[JaxprEqn, list[Any]], Sequence[Any] | None]

_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}


def interpret(closed: ClosedJaxpr, arguments: Sequence[Any], rule: Rule, lift: Callable[[Any], Any]) -> list[Any]:
    """The outputs of a jaxpr whose equations `rule` evaluates, or, by returning None for a call, has opened.

    arguments: what the rule works on, arrays or not; lift: makes one of a constant.
    """
    jaxpr, constants = closed.jaxpr, closed.consts
    environment: dict[Var, Any] = {}

    def read(atom: Any) -> Any:
        return lift(atom.val) if isinstance(atom, Literal) else environment[atom]

    environment.update(zip(jaxpr.constvars, map(lift, constants), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        outputs = rule(eqn, inputs)
        if outputs is None:
            outputs = interpret(_called(eqn), inputs, rule, lift)
        environment.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def is_call(eqn: JaxprEqn) -> bool:
    """Whether a rule may have an equation opened: a function under `jax.jit`, `jax.checkpoint` or `jax.custom_jvp`."""
    return eqn.primitive.name in _CALLS


def _called(eqn: JaxprEqn) -> ClosedJaxpr:
    jaxpr = eqn.params[_CALLS[eqn.primitive.name]]
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def evaluate(eqn: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """An equation as JAX evaluates it."""
    variables = {atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if isinstance(atom, Var)}
    names = DebugInfo("interpret", eqn.primitive.name, ("",) * len(variables), ("",) * len(eqn.outvars))
    alone = Jaxpr((), list(variables), eqn.outvars, [eqn], eqn.effects, names)
    return eval_jaxpr(alone, (), *variables.values())


def is_relu(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call of `jax.nn.relu`: max(x, 0), and nothing else, with a derivative of its own.

    A bare max(x, 0) may be anything, such as the clamp of a variance in a normalisation, or a part of another
    activation (CELU, hard swish).
    """
    return eqn.primitive.name == "custom_jvp_call" and _is_max_with_0(eqn)


def _is_max_with_0(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name == "max":
        return any(isinstance(atom, Literal) and np.ndim(atom.val) == 0 and atom.val == 0 for atom in eqn.invars)
    inner = _called(eqn).eqns if is_call(eqn) else []
    return len(inner) == 1 and _is_max_with_0(inner[0])


def contains_relu(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr has a ReLU anywhere inside."""
    return any(is_relu(eqn) or any(map(contains_relu, inner_jaxprs(eqn))) for eqn in jaxpr.eqns)


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters, such as the body of a scan and the branches of a cond."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                found.append(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
    return found
