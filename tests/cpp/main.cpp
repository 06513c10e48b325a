#include "check.h"
#ifndef MALAX_TEST_OF_PARTS
#include "malax_kernels.h"
#endif

int failures = 0;

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

int main() {
#ifndef MALAX_TEST_OF_PARTS
    if (malax_isa() == nullptr) {
        std::printf("skipped: this machine runs %s only\n", malax_isa_levels());
        return 77;
    }
    std::printf("ISA level %s of %s\n", malax_isa(), malax_isa_levels());
#endif
    int failed = 0;
    for (const Test &test : tests()) {
        const int before = failures;
        test.run();
        std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
        failed += failures != before;
    }
    std::printf("%zu passed, %d failed\n", tests().size() - failed, failed);
    return failed != 0;
}
