"""How long a test waits for what may hang; nothing here judges speed."""

from __future__ import annotations

HANG_S = 600  # of a process that was started; pytest ends a test after 900 s
