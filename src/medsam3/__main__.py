"""`python -m medsam3`: the command line."""

import sys

from medsam3.cli.main import main

sys.exit(main())
