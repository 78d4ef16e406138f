#!/usr/bin/env bash
# Builds a Windows CPython that runs under Wine, with what the tests need.
#
#     tests/wine/setup.sh DIRECTORY [3.11|3.13]
#
# Both versions may share a DIRECTORY; what is there already is not built again. Needs Debian (or a relative of it), root
# for the three packages if they are missing, and a local CPython of the same minor version, whose pure-Python standard
# library is copied. HOST_PYTHON names one where it is not found. Afterwards tests/wine/run.sh runs tests.
#
# Where the parts come from: Wine and the cross compiler from Debian; python3xx.dll and the extension modules from the
# wheel of panda3d, which carries the official Windows binaries for programs frozen with it; everything else as wheels.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage="usage: tests/wine/setup.sh DIRECTORY [3.11|3.13]"
directory=${1:?$usage}
version=${2:-3.11}
case $version in  # the release of panda3d, and the CPython that it was made with
  3.11) panda3d=1.10.14 exact=3.11.7 ;;
  3.13) panda3d=1.10.15 exact=3.13.0 ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
python=$directory/$version
begun=$SECONDS
say() { printf '%4d s  %s\n' $((SECONDS - begun)) "$*"; }

# A micro version apart is close enough for a standard library, the very same one is better.
find_host_python() {
  local wanted candidate
  for wanted in "$exact" "$version"; do
    for candidate in "${HOST_PYTHON:-}" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python \
                     "python$version" "/usr/bin/python$version" "/usr/local/bin/python$version"; do
      if [ -n "$candidate" ] && "$candidate" -c 'import sys
found = ".".join(map(str, sys.version_info[:3])) + "."
sys.exit(not found.startswith(sys.argv[1] + "."))' "$wanted" 2>/dev/null; then
        command -v "$candidate"
        return
      fi
    done
  done
  echo "no local CPython $version was found: set HOST_PYTHON to one" >&2
  return 1
}
host_python=$(find_host_python)

missing=()
for package in wine wine64 gcc-mingw-w64-x86-64-win32; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "Debian packages: ${missing[*]}"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
    >"$directory/apt.log" 2>&1 || { tail -n 20 "$directory/apt.log" >&2; exit 1; }
fi

# No .NET and no browser: they would be asked for in a window.
export WINEPREFIX=$directory/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=;mshtml="
if [ ! -e "$directory/prefix.done" ]; then
  say "Wine's Windows directory"
  rm -rf "$WINEPREFIX"
  timeout 300 wineboot --init </dev/null >"$directory/wineboot.log" 2>&1
  timeout 60 wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f </dev/null >>"$directory/wineboot.log" 2>&1
  timeout 60 wineserver --wait
  touch "$directory/prefix.done"
fi

if [ ! -e "$python/done" ]; then
  say "CPython $version, standard library from $("$host_python" --version)"
  rm -rf "$python" "$directory/wheels"
  "$host_python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --platform win_amd64 \
    --implementation cp --python-version "$version" --dest "$directory/wheels" "panda3d==$panda3d"
  "$host_python" "$here/unpack.py" "$directory"/wheels/panda3d-*.whl "$python"
  # What that wheel leaves out is small: python.exe does no more than to call the library, and python3.dll, for extension
  # modules that serve many versions, hands every name on to it.
  library=python${version/./}
  cross=x86_64-w64-mingw32
  "$cross-gcc" -O1 -s -municode "-DPYTHON_DLL=L\"$library.dll\"" "$here/python.c" -o "$python/python.exe"
  "$cross-gcc" -O1 -s -shared "$here/bcryptprimitives.c" -o "$python/bcryptprimitives.dll" -ladvapi32
  {
    printf 'LIBRARY python3.dll\nEXPORTS\n'
    "$cross-objdump" --private-headers "$python/$library.dll" | awk -v library="$library" '
      /^\[Ordinal\/Name Pointer\] Table/ { inside = 1; next }
      /^$/ { inside = 0 }
      inside { print $NF "=" library "." $NF }'
  } >"$directory/python3.def"
  "$cross-gcc" -s -shared -nostdlib -Wl,--entry=0 "$directory/python3.def" -o "$python/python3.dll"
  rm "$directory/python3.def"
  rm -rf "$directory/wheels"
  touch "$python/done"
fi

requirements=$("$host_python" "$here/requirements.py" "$here/../../pyproject.toml")
if [ "$requirements" != "$(cat "$python/requirements.txt" 2>/dev/null)" ]; then
  say "packages:" $requirements
  # shellcheck disable=SC2086 # one word for each requirement
  "$host_python" -m pip --disable-pip-version-check install --quiet --no-compile --upgrade --root-user-action=ignore \
    --only-binary=:all: --platform win_amd64 --implementation cp --python-version "$version" \
    --target "$python/Lib/site-packages" $requirements
  printf '%s\n' "$requirements" >"$python/requirements.txt"
fi
cp "$here/sitecustomize.py" "$python/Lib/site-packages/"

say "trial"
"$here/run.sh" "$directory" "$version" -c \
  'import sys, trio; trio.run(trio.sleep, 0); print(sys.version, sys.getwindowsversion()[:3], "trio", trio.__version__)'
say "done, $(du -sh "$python" | cut -f1) for Python and $(du -sh "$WINEPREFIX" | cut -f1) for Wine"
