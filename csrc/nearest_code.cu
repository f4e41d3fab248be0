#include "device.h"
#include "nearest_code.h"

namespace ld3m {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 4;  // rows a warp: each code that it reads serves them all

// Launch shape: a warp takes kRows rows, its lanes every 32nd code; kDim is 0 where dim is not known to the compiler.
template <int kDim>
__global__ void search_kernel(const float* __restrict__ rows, const float* __restrict__ codes,
                              int64_t* __restrict__ indices, int64_t num_rows, int num_codes, int num_channels) {
    const int dim = kDim ? kDim : num_channels;
    const int lane = threadIdx.x % 32;
    const int64_t first = (int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kRows;
    if (first >= num_rows) return;
    const float* row[kRows];  // past the end: the last row again
    float best[kRows];
    int index[kRows];
    for (int r = 0; r < kRows; ++r) {
        row[r] = rows + min(first + r, num_rows - 1) * dim;
        best[r] = INFINITY;
        index[r] = 0;
    }
    for (int k = lane; k < num_codes; k += 32) {
        const float* code = codes + int64_t(k) * dim;
        float distance[kRows] = {};
        for (int c = 0; c < dim; ++c) {
            const float value = code[c];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const float difference = row[r][c] - value;
                distance[r] += difference * difference;
            }
        }
        for (int r = 0; r < kRows; ++r) {
            if (distance[r] < best[r]) {
                best[r] = distance[r];
                index[r] = k;
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int step = 16; step > 0; step /= 2) {  // ties go to the lowest index, whichever lane holds it
            const float other = __shfl_xor_sync(0xffffffffu, best[r], step);
            const int its_index = __shfl_xor_sync(0xffffffffu, index[r], step);
            if (other < best[r] || (other == best[r] && its_index < index[r])) {
                best[r] = other;
                index[r] = its_index;
            }
        }
        if (lane == r && first + r < num_rows) indices[first + r] = index[r];
    }
}

}  // namespace

void nearest_code_cuda(uintptr_t rows, uintptr_t codebook, uintptr_t indices, int64_t num_rows, int64_t num_codes,
                       int64_t dim, uintptr_t stream) {
    if (num_rows == 0) return;
    const int64_t rows_per_block = kThreads / 32 * kRows;
    const auto kernel = dim == 3 ? search_kernel<3> : dim == 4 ? search_kernel<4> : search_kernel<0>;
    kernel<<<unsigned((num_rows + rows_per_block - 1) / rows_per_block), kThreads, 0,
             reinterpret_cast<cudaStream_t>(stream)>>>(
        reinterpret_cast<const float*>(rows), reinterpret_cast<const float*>(codebook),
        reinterpret_cast<int64_t*>(indices), num_rows, int(num_codes), int(dim));
    check_launch("nearest_code");
}

}  // namespace ld3m
