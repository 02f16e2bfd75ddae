"""`python -m pylandscape`: the command line where its script is not on the path."""

import sys

from pylandscape.cli import main

sys.exit(main())
