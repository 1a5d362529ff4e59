"""``python -m paged_stream`` is the command ``paged-stream``."""

import sys

from paged_stream.cli import main

sys.exit(main())
