"""`python -m bld` is `bld`."""

import sys

from bld.cli import main

sys.exit(main())
