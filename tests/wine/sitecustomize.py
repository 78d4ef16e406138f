"""Lets trio start under Wine 8.

Once per run trio asks a socket for its handle in two ways, in order to find drivers that are layered above the system's
own. Wine has no such drivers and does not know one of the questions; the answer to the other is right for both. So trio
gets to see one number under both names. Newer versions of Wine do not need this, and are not harmed by it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

_BASE_HANDLE = 0x48000022
_MODULE = "trio._core._io_windows"


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        names = ("SIO_BASE_HANDLE", "SIO_BSP_HANDLE_SELECT", "SIO_BSP_HANDLE_POLL")
        module.WSAIoctls = SimpleNamespace(**dict.fromkeys(names, _BASE_HANDLE))


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


if sys.platform == "win32":
    sys.meta_path.insert(0, _Finder)
