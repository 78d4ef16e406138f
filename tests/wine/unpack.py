"""Makes a directory that a Windows python.exe can run in: python unpack.py WHEEL DIRECTORY.

Binaries come from the wheel of panda3d, the standard library from the Python that runs this. Everything that decides
at run time between systems is in both, because the standard library is the same source on all of them.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "site-packages", "dist-packages", "lib-dynload", "config-*", "_sysconfigdata*"),
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"),
)
WITHOUT_GLOBAL_LOCK = "t-win_amd64.pyd"
# Wine 8 stops a program that asks for the machine's description so; `platform` does without this module.
LACKING_SUPPORT = {"_wmi.pyd"}
BESIDE_THE_PROGRAM = ("python3", "vcruntime", "api-ms-win-")


def unpack_binaries(wheel: Path, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.parent.name != "deploy_libs" or path.suffix not in {".dll", ".pyd"}:
                continue
            if path.name.endswith(WITHOUT_GLOBAL_LOCK) or path.name in LACKING_SUPPORT:
                continue
            beside = path.name.lower().startswith(BESIDE_THE_PROGRAM)
            target = directory / path.name if beside else directory / "DLLs" / path.name
            target.write_bytes(archive.read(name))


def main(wheel: str, directory: str) -> None:
    root = Path(directory)
    (root / "DLLs").mkdir(parents=True)
    unpack_binaries(Path(wheel), root)
    shutil.copytree(sysconfig.get_path("stdlib"), root / "Lib", ignore=LEFT_OUT)
    (root / "Lib" / "site-packages").mkdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
