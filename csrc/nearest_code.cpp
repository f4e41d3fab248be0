#include "nearest_code.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "multiversion.h"

namespace ld3m {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4;  // independent chains of additions; with 3 channels they and the minima fit into 32 registers
constexpr int kRows = kLanes * kVectors;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// A vector lane is a row, so that the running minimum needs no reduction and the first of equal codes stays.
// `block` holds kRows rows as (dim, kRows); kDim is 0 where dim is not known to the compiler.
template <int kDim>
LD3M_INLINE void search(const float* block, const float* codes, int64_t num_codes, int64_t num_channels,
                        int32_t* indices) {
    const int64_t dim = kDim ? kDim : num_channels;
    Floats best[kVectors];
    Ints index[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        best[v] = Floats{} + std::numeric_limits<float>::infinity();
        index[v] = Ints{};
    }
    for (int64_t k = 0; k < num_codes; ++k) {
        Floats distance[kVectors] = {};
        for (int64_t c = 0; c < dim; ++c) {
            for (int v = 0; v < kVectors; ++v) {
                Floats value;
                std::memcpy(&value, block + c * kRows + v * kLanes, sizeof(value));
                const Floats difference = value - codes[k * dim + c];
                distance[v] += difference * difference;
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            const Ints is_nearer = distance[v] < best[v];
            best[v] = is_nearer ? distance[v] : best[v];
            index[v] = is_nearer ? Ints{} + int32_t(k) : index[v];
        }
    }
    for (int v = 0; v < kVectors; ++v) {
        for (int lane = 0; lane < kLanes; ++lane) indices[v * kLanes + lane] = index[v][lane];
    }
}

LD3M_MULTIVERSION
void search_block(const float* block, const float* codes, int64_t num_codes, int64_t dim, int32_t* indices) {
    if (dim == 3) search<3>(block, codes, num_codes, dim, indices);
    else if (dim == 4) search<4>(block, codes, num_codes, dim, indices);
    else search<0>(block, codes, num_codes, dim, indices);
}

}  // namespace

void nearest_code(uintptr_t rows, uintptr_t codebook, uintptr_t indices, int64_t num_rows, int64_t num_codes,
                  int64_t dim, int threads) {
    const float* from = reinterpret_cast<const float*>(rows);
    const float* codes = reinterpret_cast<const float*>(codebook);
    int64_t* to = reinterpret_cast<int64_t*>(indices);
#pragma omp parallel num_threads(threads) if (threads > 1 && num_rows > kRows)
    {
        std::vector<float> block(dim * kRows);
        int32_t found[kRows];
#pragma omp for
        for (int64_t low = 0; low < num_rows; low += kRows) {
            const int64_t count = std::min<int64_t>(kRows, num_rows - low);
            for (int64_t r = 0; r < count; ++r) {
                for (int64_t c = 0; c < dim; ++c) block[c * kRows + r] = from[(low + r) * dim + c];
            }
            search_block(block.data(), codes, num_codes, dim, found);
            std::copy(found, found + count, to + low);
        }
    }
}

}  // namespace ld3m
