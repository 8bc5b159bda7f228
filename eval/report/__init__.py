"""What is shown of results.

`collection` reads folders, `grouping` sets results side by side, `comparisons` and `series` find what may be said of
them, all of it by `eval.statistics`, and `analysis` is all that is said. `tables`, `figures` and `page` show it, and
compute nothing.
"""

from dcls_jax.eval.report.tables import print_results as print_results
