"""Who is told of what happens to an open file description."""

from __future__ import annotations

from crd.image.codec import Struct
from crd.image.fields import S32, U32  # noqa: TC001  # evaluated when the class is made


class Owner(Struct):
    """Who gets SIGIO for an open file description (F_GETOWN_EX), and which signal instead (F_GETSIG)."""

    kind: U32  # F_OWNER_*
    pid: S32  # 0 = nobody
    signal: U32
