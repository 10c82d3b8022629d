"""What `fieldtune` says of how it ended by its exit status."""

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.compare import Verdict

EXIT_STATUS_OF: Mapping["Verdict", int] = {"pass": 0, "fail": 1, "cannot tell": 3}
EXIT_BROKEN_CONTRACT = 1
EXIT_ROWS_IN_ERROR = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT

# For the help of the verbs that judge.
EXIT_STATUSES_OF_A_VERDICT = (
    "Exit status: 0 pass, 1 fail (of a file, or of the rows' contract), 3 cannot tell; 2 when it could not be done."
)
