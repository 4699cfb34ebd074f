"""``python -m posttrain``: the command without its script."""

import sys

from posttrain.cli.main import main

sys.exit(main())
