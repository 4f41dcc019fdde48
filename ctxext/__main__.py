"""`python -m ctxext`."""

import os
import sys

# Python has put the current directory first in the import path. It may be a stranger's, except
# where it is the checkout that this package is used from.
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not sys.flags.safe_path and os.path.abspath(sys.path[0]) != _CHECKOUT:
    del sys.path[0]

from ctxext.cli.main import main  # noqa: E402

sys.exit(main())
