"""Outcomes guarantees and evidence -> numbers, claims and the certificate file; numpy and scipy only.

Called, as `mucd_ray.certify(...)`, it is `mucd_ray.api.certify`: this room and that verb have one name.
"""

import sys
import types


class _Certify(types.ModuleType):
    def __call__(self, **evidence) -> dict:
        from mucd_ray.api import certify

        return certify(**evidence)


sys.modules[__name__].__class__ = _Certify
