"""`python -m ctxext`."""

import sys

from ctxext.cli import main

sys.exit(main())
