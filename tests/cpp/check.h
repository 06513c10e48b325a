// The few lines of a test framework that these tests need.
#pragma once

#include <cmath>
#include <cstdio>
#include <vector>

struct Test {
    const char *name;
    void (*run)();
};

std::vector<Test> &tests();
extern int failures;

struct Register {
    Register(const char *name, void (*run)()) { tests().push_back({name, run}); }
};

#define TEST(name)                              \
    static void name();                         \
    static const Register register_##name(#name, name); \
    static void name()

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);     \
            ++failures;                                                               \
        }                                                                             \
    } while (0)

#define CHECK_CLOSE(found, wanted, tolerance)                                                               \
    do {                                                                                                    \
        const double f_ = (found), w_ = (wanted);                                                           \
        if (!(std::fabs(f_ - w_) <= (tolerance))) {                                                         \
            std::printf("%s:%d: %s is %.17g, not %.17g\n", __FILE__, __LINE__, #found, f_, w_);             \
            ++failures;                                                                                     \
        }                                                                                                   \
    } while (0)
