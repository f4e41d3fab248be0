// Sixteen float32 numbers at a time, by GCC's vectors: one register with AVX-512, two with AVX2, four with SSE2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "multiversion.h"

namespace ld3m {

constexpr int64_t kWide = 16;
typedef float Wide __attribute__((vector_size(64)));
typedef int32_t WideInt __attribute__((vector_size(64)));
typedef uint16_t WideShort __attribute__((vector_size(32)));

struct BFloat16 {
    uint16_t bits;
};

LD3M_INLINE void load(const float* from, Wide& to) { std::memcpy(&to, from, sizeof(to)); }

LD3M_INLINE void store(const Wide& from, float* to) { std::memcpy(to, &from, sizeof(from)); }

LD3M_INLINE void load(const BFloat16* from, Wide& to) {
    WideShort bits;
    std::memcpy(&bits, from, sizeof(bits));
    const WideInt wide = __builtin_convertvector(bits, WideInt) << 16;
    to = (Wide)wide;
}

LD3M_INLINE void store(const Wide& from, BFloat16* to) {
    const WideInt bits = (WideInt)from, odd = (bits >> 16) & 1;
    const WideInt rounded = ((bits + 0x7fff + odd) >> 16) & 0xffff;  // to the nearest, ties to even
    const WideInt is_nan = from != from;
    const WideShort shorts = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), WideShort);
    std::memcpy(to, &shorts, sizeof(shorts));
}

// The first n < kWide numbers; the others are 0.
template <typename T>
LD3M_INLINE void load_some(const T* from, int64_t n, Wide& to) {
    T numbers[kWide] = {};
    for (int64_t i = 0; i < n; ++i) numbers[i] = from[i];
    load(numbers, to);
}

template <typename T>
LD3M_INLINE void store_some(const Wide& from, int64_t n, T* to) {
    T numbers[kWide];
    store(from, numbers);
    for (int64_t i = 0; i < n; ++i) to[i] = numbers[i];
}

template <typename T>
LD3M_INLINE void load_at(const T* from, int64_t n, Wide& to) {
    n < kWide ? load_some(from, n, to) : load(from, to);
}

template <typename T>
LD3M_INLINE void store_at(const Wide& from, int64_t n, T* to) {
    n < kWide ? store_some(from, n, to) : store(from, to);
}

LD3M_INLINE void select(const WideInt& condition, const Wide& yes, const Wide& no, Wide& to) {
    to = (Wide)((condition & (WideInt)yes) | (~condition & (WideInt)no));
}

// e^x within 2 ulp where that is a normal number, with x cut off at the ends of that range; NaN stays.
LD3M_INLINE void exponential(const Wide& x, Wide& to) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const Wide lowest = Wide{} - 87.0f, highest = Wide{} + 88.0f;
    Wide v;
    select(x < lowest, lowest, x, v);
    select(v > highest, highest, v, v);
    const Wide shifted = v * 1.44269504088896341f + kMagic, whole = shifted - kMagic;
    const Wide r = (v - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Wide p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes, expf
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    const WideInt power = ((WideInt)shifted - 0x4b400000 + 127) << 23;
    to = p * (Wide)power;
}

// 1 / (1 + e^-x).
LD3M_INLINE void sigmoid(const Wide& x, Wide& to) {
    exponential(-x, to);
    to = 1.0f / (to + 1.0f);
}

// The error function within 3 ulp, by the rational approximation of Eigen and XLA.
LD3M_INLINE void error_function(const Wide& x, Wide& to) {
    const Wide lowest = Wide{} - 4.0f, highest = Wide{} + 4.0f;
    Wide v;
    select(x < lowest, lowest, x, v);
    select(v > highest, highest, v, v);
    const Wide s = v * v;
    Wide p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    Wide q = s * -1.45660718464996e-05f + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    to = v * p / q;
}

}  // namespace ld3m
