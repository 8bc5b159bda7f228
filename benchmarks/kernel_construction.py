"""What it costs to construct the kernels of a model with DCLS, beside its training step and the `dcls` package.

    python benchmarks/kernel_construction.py [--models convnext_tiny,...] [--batch 8] [--skip-step]

All layers of a model in its published setting, forward and backward (to weights and positions); the step is that of
training.py at 224 x 224. The package constructs the same kernels in torch; it needs the parity extra.
"""

import argparse
import importlib.util
from collections.abc import Callable

import jax
import training
from flax import nnx
from timing import machine, minima

from dcls_jax import Dcls2d, Positions, compiler_options
from dcls_jax.models import Backbone, create_model, list_models

COLUMNS = ("model", "layers", "dcls package", "ours", "ratio", "training step", "share of the step")

Pair = tuple[Dcls2d, Positions]


def dcls_layers(model: Backbone) -> list[Pair]:
    """Each DCLS layer with the positions that it uses: its own or its stage's."""
    pairs: list[Pair] = []
    for _, stage in nnx.iter_modules(model):
        layers = [module for _, module in nnx.iter_modules(stage) if isinstance(module, Dcls2d)]
        if isinstance(getattr(stage, "positions", None), Positions) and not isinstance(stage, Dcls2d):
            pairs += [(layer, stage.positions) for layer in layers if layer.positions is None]
    return pairs


def ours(pairs: list[Pair]) -> Callable[[], object]:
    graph, state = nnx.split(nnx.List(nnx.List(pair) for pair in pairs))

    def construct(state: nnx.State) -> list[jax.Array]:
        return [layer.construct(positions) for layer, positions in nnx.merge(graph, state)]

    def both(state: nnx.State) -> tuple[list[jax.Array], nnx.State]:
        kernels, pull_back = jax.vjp(construct, state)
        return kernels, pull_back(kernels)[0]

    compiled = jax.jit(both, compiler_options=compiler_options())
    return lambda: compiled(state)


def packages(pairs: list[Pair]) -> Callable[[], object]:
    import torch
    from DCLS.construct.modules import ConstructKernel2d

    constructors, tensors = [], []
    for layer, _ in pairs:
        out, in_per_group, count = layer.weight[...].shape
        channels = out, in_per_group * layer.groups, layer.groups
        constructors.append(ConstructKernel2d(*channels, count, list(layer.dilated_kernel_size), layer.version))
        weight, p = torch.randn(out, in_per_group, count), 2 * torch.randn(2, out, in_per_group, count)
        tensors.append((weight.requires_grad_(), p.requires_grad_()))

    def call() -> None:
        for constructor, (weight, p) in zip(constructors, tensors, strict=True):
            kernel = constructor(weight, p, None)
            torch.autograd.grad(kernel, (weight, p), kernel.detach())

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(list_models()))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-step", action="store_true")
    options = parser.parse_args()
    print(f"forward and backward, ms; step of {options.batch} images; {machine()}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in options.models.split(","):
        model = create_model(name, dcls=True)
        pairs = dcls_layers(model)
        candidates = {"ours": ours(pairs)}
        if importlib.util.find_spec("DCLS"):
            candidates["package"] = packages(pairs)
        if not options.skip_step:
            candidates["step"] = training.ours(model, options.batch, 224)
        times = {key: 1e3 * seconds for key, seconds in minima(candidates, rounds=options.rounds).items()}
        own = times["ours"]
        package, ratio = ("", "")
        if "package" in times:
            package, ratio = f"{times['package']:.0f}", f"{times['package'] / own:.1f}x"
        whole, share = ("", "") if options.skip_step else (f"{times['step']:.0f}", f"{100 * own / times['step']:.1f} %")
        print(f"| {name} | {len(pairs)} | {package} | {own:.1f} | {ratio} | {whole} | {share} |", flush=True)


if __name__ == "__main__":
    main()
