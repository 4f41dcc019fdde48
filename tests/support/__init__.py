"""Helpers of the tests: tiny models, stand-ins for servers and writers, independent references."""

from support import (
    shape_checker as shape_checker,
)  # pytest names it as `support.shape_checker.checked`
