"""`python -m oneroof`: the same as the command `oneroof`."""

from __future__ import annotations

import sys

from oneroof.cli.main import main

sys.exit(main())
