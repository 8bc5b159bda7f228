"""Many evaluations by one file: models x methods x metrics x data, planned as a whole, done once, kept by cell."""

from dcls_jax.eval.suite.located import SuiteError as SuiteError
from dcls_jax.eval.suite.run import Plan as Plan
from dcls_jax.eval.suite.spec import SHIPPED as SHIPPED
from dcls_jax.eval.suite.spec import Suite as Suite
from dcls_jax.eval.suite.spec import load as load
from dcls_jax.eval.suite.spec import parse as parse
