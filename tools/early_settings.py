"""Makes the settings that must be made before torch is imported; a tool imports this module first."""

import os
import runpy
from importlib.util import find_spec

# Run as a file: as a module of the package, it would be imported after the package, which imports torch.
spec = find_spec("mmgcvit")
if spec is not None and spec.origin is not None:  # otherwise, the tool's own import says that it is not installed
    runpy.run_path(os.path.join(os.path.dirname(spec.origin), "early_settings.py"))["apply"]()
