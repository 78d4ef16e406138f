/* Wine 8 lacks this library. Programs written in Rust, such as the one inside cryptography, want its one function. */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length > 65536 ? 65536 : (ULONG)length;
        if (!RtlGenRandom(buffer, part))
            return FALSE;
        buffer += part;
        length -= part;
    }
    return TRUE;
}
