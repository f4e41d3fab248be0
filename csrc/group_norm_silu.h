// Group normalisation, with SiLU or alone, of (batch, pixels, channels), that is of channels_last; see ld3m/ops.
#pragma once

#include <cstdint>

namespace ld3m {

// mean and rstd are float32 (batch, groups); is_bfloat16 is of every other tensor.
void group_norm_silu_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean, uintptr_t rstd,
                         int64_t batch, int64_t pixels, int64_t channels, int64_t groups, double eps, bool silu,
                         bool is_bfloat16, int64_t threads);

void group_norm_silu_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t rstd,
                         uintptr_t grad_x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, bool silu,
                         bool is_bfloat16, int64_t threads);

}  // namespace ld3m
