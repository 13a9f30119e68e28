"""An agent that trains nothing, for tests of the launcher: `python small_agent.py STORE --attempt N`.

A step is a short sleep, a checkpoint a file of some bytes; store, lock, events, status, control and exit codes are
the real ones. `ends.json` in the store: attempt -> [exit code, reason, message, step] for attempts that fail.
In the store: `deaf`, it hears neither control nor signals; `held`, it waits before its last step; `slow`, seconds
that a save takes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from ft.recipes.plan import read_plan
from ft.recipes.runstore import Event, ExitCode, Reason, Status, step_name
from ft.recipes.store import LocalStore

STEP_S = 0.02
SAVE_EVERY = 5


class Agent:
    def __init__(self, store: LocalStore, attempt: int) -> None:
        self.store, self.attempt = store, attempt
        self.plan_sha256 = read_plan(store.plan_path).sha256
        self.step = self.saved = 0
        self.told = False
        signal.signal(signal.SIGTERM, self.hear)

    def hear(self, _signum: int, _frame: FrameType | None) -> None:
        self.told = True

    def emit(self, kind: str, **data: object) -> None:
        self.store.append_event(Event(kind, time.time(), self.attempt, data))

    def beat(self, **end: object) -> None:
        phase = "end" if end else "train"
        values = {"step": self.step, "total_steps": self.total, "checkpoint_step": self.saved}
        self.store.put_status(Status(self.attempt, phase, time.time(), **values, **end))  # type: ignore[arg-type]  # see above

    @property
    def total(self) -> int:
        return read_plan(self.store.plan_path).optim.max_steps or 10

    def publish(self, name: str) -> None:
        slow = self.store.root / "slow"
        if slow.exists():
            time.sleep(float(slow.read_text()))
        staged = self.store.staging(name)
        (staged / "weights.bin").write_bytes(f"{self.step} ".encode() * 1000)
        self.store.publish(
            staged,
            name,
            step=self.step,
            attempt=self.attempt,
            plan_sha256=self.plan_sha256,
            meta={},
        )

    def save(self) -> None:
        self.publish(step_name(self.step))
        self.saved = self.step
        self.emit("checkpoint", step=self.step, name=step_name(self.step), bytes=3000, seconds=0.1)

    def stop_reason(self) -> Reason | None:
        if (self.store.root / "deaf").exists():
            return None
        control = self.store.get_control()
        if control is not None:
            return Reason(control.reason)
        return Reason.PREEMPTED if self.told else None

    def run(self) -> int:
        self.emit("attempt", mark="begin")
        folder, _ = self.store.newest_checkpoint(plan_sha256=self.plan_sha256)
        if folder is not None:
            self.step = self.saved = int(folder.name.removeprefix("step-"))
            self.emit("resume", step=self.step, name=folder.name)
        ends = self.store.root / "ends.json"
        orders = json.loads(ends.read_text()) if ends.exists() else {}
        code, reason, message, at = orders.get(str(self.attempt), [None, "", "", 0])
        while self.step < self.total:
            if code is not None and self.step >= at:
                print(f"failing: {message}", flush=True)
                return self.end(code, reason, message)
            stop = self.stop_reason()
            if stop is not None:
                self.save()
                known = ExitCode.PREEMPTED if stop is Reason.PREEMPTED else ExitCode.DETERMINISTIC
                return self.end(known, stop, f"saved at step {self.step} and stopped")
            time.sleep(STEP_S)
            if self.step == self.total - 1 and (self.store.root / "held").exists():
                continue
            self.step += 1
            loss = 3 - self.step / self.total
            self.emit("step", step=self.step, total_steps=self.total, loss=loss, step_time_s=STEP_S)
            if self.step % SAVE_EVERY == 0:
                self.save()
            self.beat()
        self.publish("final")
        return self.end(ExitCode.DONE, Reason.DONE, "done")

    def end(self, code: int, reason: str, message: str) -> int:
        self.beat(exit_code=code, reason=reason, message=message)
        self.emit("attempt", mark="end", exit_code=code, reason=reason, message=message)
        return code


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--simulate", action="append")
    arguments = parser.parse_args()
    store = LocalStore(arguments.store)
    with (store.root / ".attempt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Agent(store, arguments.attempt).run()


if __name__ == "__main__":
    sys.exit(main())
