"""`python -m sam2_3dmed_jax`: the command `sam2-3dmed`."""

import sys

from sam2_3dmed_jax.commands.main import main

sys.exit(main())
