from __future__ import annotations

import sys

from ft.runtime.preflight.run import main

sys.exit(main())
