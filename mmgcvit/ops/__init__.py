"""mmcv's operators, computed by torchvision and torch where mmcv was installed without its compiled ones.

``mmcv.ops`` calls the functions of an extension module, ``mmcv._ext``, that has to be compiled. Where there is none,
this package supplies a module of that name (:mod:`mmgcvit.ops.standin`) with the operators that models of mmdet and
mmseg use (:mod:`mmgcvit.ops.operators`). Compiled operators always take precedence. Neither mmcv nor torchvision is
imported before mmcv asks for the extension.
"""

from mmgcvit.ops.standin import in_use, install

__all__ = ["in_use", "install"]
