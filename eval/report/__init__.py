"""What is shown of results: numbers in, tables out; nothing is computed."""

from dcls_jax.eval.report.tables import print_results as print_results
