"""``python -m labmesh``: the command line."""

import sys

from labmesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
