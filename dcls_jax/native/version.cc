// Which version of XLA's foreign function interface the library was built for: asked before anything is registered, as
// an older XLA refuses to start with handlers that are newer than itself.

#include <cstdint>

#include "xla/ffi/api/c_api.h"

extern "C" void dcls_ffi_version(int32_t* major, int32_t* minor) {
  *major = XLA_FFI_API_MAJOR;
  *minor = XLA_FFI_API_MINOR;
}
