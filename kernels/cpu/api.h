// Errors on their way through the C interface.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "malax_kernels.h"

namespace malax {

struct Error : std::runtime_error {
    Error(malax_status status_, const std::string &message) : std::runtime_error(message), status(status_) {}
    malax_status status;
};

inline void require(bool condition, const char *message) {
    if (!condition) throw Error(MALAX_INVALID_ARGUMENT, message);
}

// Stores the message of malax_last_error() for this thread and returns the status.
int fail(malax_status status, const char *message) noexcept;

// Runs a function; what it throws becomes a status and a message.
template <class F>
int guarded(F &&function) noexcept {
    try {
        function();
        return MALAX_OK;
    } catch (const Error &error) {
        return fail(error.status, error.what());
    } catch (const std::bad_alloc &) {
        return fail(MALAX_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &error) {
        return fail(MALAX_INTERNAL_ERROR, error.what());
    } catch (...) {
        return fail(MALAX_INTERNAL_ERROR, "unknown error");
    }
}

}  // namespace malax
