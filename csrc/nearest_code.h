// Index of the nearest codebook row by squared Euclidean distance, without the matrix of distances.
//
// rows (num_rows, dim) and codebook (num_codes, dim) are dense float32, indices (num_rows) int64; ties go to the lowest index.
#pragma once

#include <cstdint>

namespace ld3m {

void nearest_code(uintptr_t rows, uintptr_t codebook, uintptr_t indices, int64_t num_rows, int64_t num_codes,
                  int64_t dim, int threads);
void nearest_code_cuda(uintptr_t rows, uintptr_t codebook, uintptr_t indices, int64_t num_rows, int64_t num_codes,
                       int64_t dim, uintptr_t stream);

}  // namespace ld3m
