#include "api.h"

#include <cstdio>

namespace malax {

namespace {
thread_local char last_error[512] = "";
}

int fail(malax_status status, const char *message) noexcept {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

}  // namespace malax

int malax_abi_version(void) { return MALAX_ABI_VERSION; }

const char *malax_version(void) { return MALAX_VERSION; }

const char *malax_compiler(void) { return MALAX_COMPILER; }

int malax_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

const char *malax_last_error(void) { return malax::last_error; }
