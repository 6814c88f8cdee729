"""Where DenseDepth was in 0.1.0; the cards of models made with it import it from here."""

from builder.depth.densedepth import *  # noqa: F403
