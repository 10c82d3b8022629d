"""`python -m finetune` is the command `fieldtune`."""

import sys

from finetune.cli import main

sys.exit(main())
