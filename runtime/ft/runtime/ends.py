"""An attempt that ends for a reason that is known. Imports no torch."""

from __future__ import annotations

from ft.recipes.runstore import ExitCode, Reason


class AttemptError(Exception):
    """Raised where the reason is found, caught at the edge of the process, which ends with `exit_code`."""

    def __init__(self, exit_code: ExitCode, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.reason, self.message = exit_code, reason, message
