"""Numbers that are not finite: a few steps are left out, then the run goes back, then it ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from ft.recipes.runstore import Adjust, ExitCode, Reason, step_folders
from ft.recipes.store import LocalStore
from ft.runtime.ends import AttemptError
from ft.runtime.world import World

BUDGET: Final = 3
WINDOW_STEPS: Final = 100
"""More than BUDGET bad steps among so many are no accident of one batch."""
MAX_ROLLBACKS: Final = 3


@dataclass(slots=True)
class BadSteps:
    """The bad steps of the last while."""

    steps: list[int] = field(default_factory=list)
    """Counted from 1, ascending."""

    def note(self, step: int) -> bool:
        """True if there are too many of them now."""
        self.steps = [*(s for s in self.steps if s > step - WINDOW_STEPS), step]
        return len(self.steps) > BUDGET


def next_adjust(adjust: Adjust, bad: list[int], newest_step: int) -> Adjust | None:
    """What the next attempt is to leave out; None if it would be the same again. Pure.

    `newest_step` is that of the newest checkpoint. Once a good step and a checkpoint have come after the place of the
    last rollback, the run has got past it, and this is another place.
    """
    last = adjust.rollbacks[-1] if adjust.rollbacks else 0
    past = not last or (newest_step > last and bad[0] > last + 1)
    if not past or len(adjust.rollbacks) >= MAX_ROLLBACKS:
        return None
    left_out = tuple(sorted({*adjust.left_out, *bad}))
    return replace(adjust, left_out=left_out, rollbacks=(*adjust.rollbacks, bad[-1]))


def go_back(store: LocalStore, world: World, bad: list[int], newest_step: int) -> None:
    """Write down what to leave out and end the attempt, on every rank. Collective.

    Checkpoints from the first bad step on are set aside: the trouble may have begun before it showed.
    Raises: AttemptError: the next attempt begins earlier, or there is none.
    """
    steps = ", ".join(str(step) for step in bad)
    found = ""
    if world.is_main:
        adjust = next_adjust(store.get_adjust(), bad, newest_step)
        if adjust is not None:
            # In this order: killed in between, the next attempt meets the same steps and goes back once more.
            for folder in step_folders(store.checkpoints):
                if int(folder.name.removeprefix("step-")) >= bad[0]:
                    store.set_aside(folder)
            store.put_adjust(adjust)
            found = "back"
    if world.from_main(found) == "back":
        raise AttemptError(
            ExitCode.PREEMPTED,
            Reason.ROLLBACK,
            f"loss or gradient was not finite in steps {steps}: back to the checkpoint before "
            f"step {bad[0]}; these steps are left out",
        )
    raise AttemptError(
        ExitCode.DETERMINISTIC,
        Reason.DETERMINISTIC,
        f"loss or gradient was not finite in steps {steps}, after the run had gone back and left "
        "bad steps out: lower learning_rate, or look at these rows",
    )
