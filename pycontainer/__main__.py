"""``python -m pycontainer``: the command line."""

import sys

from pycontainer.cli import main

sys.exit(main())
