from __future__ import annotations

from ft.runtime.node import die_with_agent

die_with_agent()  # Before the slow imports: an agent that dies now must not leave ranks behind.

import sys  # noqa: E402

from ft.runtime.gc_paused import gc_paused  # noqa: E402

with gc_paused():
    from ft.runtime.preflight.run import main

sys.exit(main())
