"""A suite run to its end: results, pictures and the report of them."""

from pathlib import Path

import jax

from dcls_jax.eval.cli import command_line
from dcls_jax.eval.gallery import GALLERY
from dcls_jax.eval.hosts import together
from dcls_jax.eval.report.files import write_report
from dcls_jax.eval.stored import Stored
from dcls_jax.eval.suite.gallery import write as write_gallery
from dcls_jax.eval.suite.run import Plan


def run(plan: Plan) -> tuple[list[Stored], Path]:
    """Run what is not done, then write the gallery and report.html into the suite's folder: all results, and the page.

    The first process of a job writes these. Raises as `Plan.run`, `gallery.write` and `write_report` do.
    """
    pictures = plan.out / "gallery"
    stale = any(True for _ in plan.passes()) or not (pictures / GALLERY).exists()
    results = plan.run()
    page = plan.out / "report.html"
    with together():
        if jax.process_index() == 0:
            if stale:
                write_gallery(plan, pictures)
            write_report([found.folder for found in results], page, command=command_line())
    return results, page
