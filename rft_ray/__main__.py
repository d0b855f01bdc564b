"""`python -m rft_ray` is the `rft-ray` command."""

import sys

from rft_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
