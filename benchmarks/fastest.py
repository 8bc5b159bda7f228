"""The table of lowerings by the time they take, dcls_jax/fastest.json, with a platform's part measured anew."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dcls_jax.methods


def write(platform: str, rows: Sequence[dict[str, Any]]) -> None:
    """Replace a platform's part of the table."""
    path = Path(dcls_jax.methods.__file__).with_name("fastest.json")
    whole = json.loads(path.read_text()) | {platform: rows}
    platforms = (f'"{name}": [\n' + ",\n".join(map(json.dumps, of)) + "\n]" for name, of in whole.items())
    path.write_text("{\n" + ",\n".join(platforms) + "\n}\n")
