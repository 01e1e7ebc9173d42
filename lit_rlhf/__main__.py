"""`python -m lit_rlhf` is the command `lit-rlhf`."""

import sys

from lit_rlhf.cli import main

sys.exit(main())
