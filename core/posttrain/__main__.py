"""``python -m posttrain``: the command line without its script."""

import sys

from posttrain.cli.main import main

sys.exit(main())
