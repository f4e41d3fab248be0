// Sums over pixels in channels_last, where channels are columns and pixels rows.
#pragma once

#include "lanes.h"

namespace ld3m {

constexpr int64_t kTile = 64;  // pixels summed in float32 at a time, and met again while the first cache holds them

// Of one sample: columns [0, width) of rows `stride` numbers apart, in groups of `group` columns.
struct Slab {
    int64_t pixels, stride, width, group;
    double count() const { return static_cast<double>(pixels * group); }
};

// Add to `sums`, by column, what `term(i, number)` makes of the numbers x.
template <typename T, typename Term>
LD3M_INLINE void add_up(const T* x, const Slab& slab, double* sums, Term term) {
    for (int64_t first = 0; first < slab.pixels; first += kTile) {
        const int64_t last = std::min(slab.pixels, first + kTile);
        for (int64_t i = 0; i < slab.width; i += kWide) {
            const int64_t n = std::min(kWide, slab.width - i);
            Wide strands[4] = {};
            int64_t p = first;
            for (; n == kWide && p + 4 <= last; p += 4) {
                for (int64_t k = 0; k < 4; ++k) {
                    Wide v;
                    load(x + (p + k) * slab.stride + i, v);
                    term(i, v);
                    strands[k] += v;
                }
            }
            for (; p < last; ++p) {
                Wide v;
                load_at(x + p * slab.stride + i, n, v);
                term(i, v);
                strands[0] += v;
            }
            const Wide total = (strands[0] + strands[1]) + (strands[2] + strands[3]);
            for (int64_t k = 0; k < n; ++k) sums[i + k] += total[k];
        }
    }
}

template <typename T>
T* at(uintptr_t pointer, int64_t offset = 0) {
    return reinterpret_cast<T*>(pointer) + offset;
}

}  // namespace ld3m
