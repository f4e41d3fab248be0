// value * gelu(gate) of rows (2 * width) that hold both halves, with the exact GELU; see ld3m/ops.
#pragma once

#include <cstdint>

namespace ld3m {

void geglu_fwd(uintptr_t halves, uintptr_t out, int64_t rows, int64_t width, bool is_bfloat16, int64_t threads);

void geglu_bwd(uintptr_t grad, uintptr_t halves, uintptr_t grad_halves, int64_t rows, int64_t width, bool is_bfloat16,
               int64_t threads);

}  // namespace ld3m
