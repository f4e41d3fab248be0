// One binary for every x86-64: a function marked so is compiled for AVX-512, AVX2 + FMA and SSE2, and chosen when loaded.
// What it calls must be inlined into it (LD3M_INLINE). Sanitizers cannot run before the choice, so they get the plain one.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LD3M_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LD3M_MULTIVERSION
#endif

#define LD3M_INLINE inline __attribute__((always_inline))
