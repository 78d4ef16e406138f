/* The smallest python.exe: it runs the interpreter of the library that is named when this is compiled. */
#include <stdio.h>
#include <windows.h>

typedef int (*run_python)(int, wchar_t **);

int wmain(int argc, wchar_t **argv)
{
    HMODULE library = LoadLibraryW(PYTHON_DLL);
    FARPROC found = library == NULL ? NULL : GetProcAddress(library, "Py_Main");

    if (found == NULL) {
        fprintf(stderr, "%ls cannot be loaded: error %lu\n", PYTHON_DLL, GetLastError());
        return 120;
    }
    return ((run_python)(void *)found)(argc, argv);
}
