#!/usr/bin/env bash
# Runs the Windows Python that tests/wine/setup.sh built, in the current directory.
#
#     tests/wine/run.sh DIRECTORY 3.11 -m pytest tests/pipes
#
# What it prints on either stream comes out on standard output; its exit status is this script's.
set -euo pipefail
usage="usage: tests/wine/run.sh DIRECTORY VERSION ARGUMENT…"
directory=$(cd "${1:?$usage}" && pwd)
version=${2:?$usage}
shift 2
export WINEPREFIX=$directory/prefix WINEDEBUG=${WINEDEBUG:--all} WINEDLLOVERRIDES="mscoree=;mshtml="
unset PYTHONDONTWRITEBYTECODE  # what is compiled for Windows lies beside its Python, out of the way of the project
export PYTHONUTF8=1 PYTHONPYCACHEPREFIX="Z:$directory/pycache"

# Wine's service processes inherit the streams of whoever starts them and outlive him by seconds, so that a reader of
# our output would wait for them: they are started first, without our streams.
wineserver --persistent=10 </dev/null >/dev/null 2>&1 || true  # it runs already
wine cmd /c exit </dev/null >/dev/null 2>&1

# Through a pipe because Wine 8 cannot tell the kind of a standard stream that is a file, and Python then does not start.
set +e
wine "$directory/$version/python.exe" "$@" </dev/null 2>&1 | cat
exit "${PIPESTATUS[0]}"
