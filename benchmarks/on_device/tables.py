"""Measurements as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]


def tables(lines: Sequence[Line]) -> str:
    """What was measured, what went wrong, and what there was no time for."""
    sound = [line for line in lines if "error" not in line]

    def of(case: str) -> list[Line]:
        return [line for line in sound if line["case"] == case]

    parts = [
        *(f"{it['kind']}, {it['cpu_cores']} CPU cores, {it['versions']}" for it in of("device")),
        *(f"{it['of']}: {it.get('gb_per_s', it.get('tflop_per_s')):.0f} {_unit(it)}" for it in of("speed")),
        *_exact(of("exact")),
        *_depthwise(of("depthwise")),
    ]
    if maps := of("maps"):
        head = "model", "logits, of float64", "map, of its magnitudes", "compilation"
        rows = [(_model(it), _e(it["logits"]), _e(it["map_of_scale"]), f"{it['compile_s']:.0f} s") for it in maps]
        parts += ["Grad-CAM at precision highest beside float64 on a CPU", table(head, rows)]
    if cams := of("cam") + of("torch cam"):
        head = "model", "batch", "arithmetic", "by", "images/s", "compilation", "GiB", "map, of its magnitudes"
        parts += ["Grad-CAM", table(head, map(_cam, cams))]
    if steps := of("step"):
        rows = [(it["model"], it["step"], str(it["batch"]), f"{it['images_per_s']:.1f}") for it in steps]
        parts += ["Steps", table(("model", "step", "batch", "images/s"), rows)]
    parts += [f"section {it['name']}: {it['seconds']:.0f} s, {it['end']}" for it in of("section")]
    parts += [f"left out: {_rest(it)}" for it in lines if it["case"] == "left out"]
    parts += [f"error: {_rest(it)}" for it in lines if "error" in it and it["case"] != "left out"]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _exact(lines: Sequence[Line]) -> list[str]:
    """The worst of all shapes."""
    worst: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        key = line["method"], line["dtype"]
        worst[key] = [max(pair) for pair in zip(worst.get(key, [0.0] * 3), line["errors"], strict=True)]
    rows = [(*key, *map(_e, errors)) for key, errors in worst.items()]
    title = "Depthwise convolution and its gradients, worst difference from float64 over the norm"
    return [title, table(("lowering", "dtype", "y", "dx", "dk"), rows)] if rows else []


def _depthwise(lines: Sequence[Line]) -> list[str]:
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["kernel"], line["gradient"], line["dtype"], line["batch"]), []).append(line)
    parts = []
    for (kernel, gradient, dtype, batch), group in groups.items():
        methods = list(dict.fromkeys(method for line in group for method in line["us"]))
        what = "forward and both gradients" if gradient else "forward"
        rows = [
            (
                f"{it['size']}x{it['size']}x{it['channels']}" + (f" /{it['stride']}" if it["stride"] > 1 else ""),
                *(f"{it['us'][method]:.0f}" if method in it["us"] else "" for method in methods),
                "" if it["floor_us"] is None else f"{it['floor_us']:.0f}",
            )
            for it in group
        ]
        parts.append(f"Depthwise {kernel}x{kernel}, {what}, {dtype}, batch {batch}, microseconds")
        parts.append(table(("input", *methods, "memory floor"), rows))
    return parts


def _cam(line: Line) -> Sequence[str]:
    ours = line["case"] == "cam"
    memory, off = (line.get(name) for name in ("gib", "map_of_scale"))
    return (
        _model(line),
        str(line["batch"]),
        line["arithmetic"],
        "ours" if ours else f"torch, {line['recipe']}",
        f"{line['images_per_s']:.1f}",
        f"{line['compile_s']:.0f} s",
        "" if memory is None else f"{memory:.1f}",
        "" if off is None else _e(off),
    )


def _model(line: Line) -> str:
    return line["model"] + (" dcls" if line["dcls"] else "")


def _e(value: float) -> str:
    return f"{value:.0e}"


def _unit(line: Line) -> str:
    return "GB/s" if "gb_per_s" in line else "TFLOP/s"


def _rest(line: Line) -> str:
    return ", ".join(f"{name} {value}" for name, value in line.items() if name != "section")
