"""What worker processes of this computer need, imported once before they are forked. Heavy.

Nothing that starts threads or touches a GPU.
"""

import tifffile  # noqa: F401

import cellseg.engine.cluster_plugin
import cellseg.engine.cluster_worker  # noqa: F401
