// Guidance and the skip-injected update in one pass, and its vector-Jacobian product.
//
// Pointers are addresses of dense tensors in one order of memory; 0 stands for a tensor that is not there. `predictions` and
// `to_predictions` hold n numbers, or 2n when guided: null rows, then conditional rows.
#pragma once

#include <cstdint>

namespace ld3m {

void reverse_step_fwd(uintptr_t state, uintptr_t predictions, uintptr_t injected, uintptr_t out, int64_t n, double a,
                      double b, double d, double guidance_scale, bool is_guided, int threads);
void reverse_step_bwd(uintptr_t grad, uintptr_t to_state, uintptr_t to_predictions, uintptr_t to_injected, int64_t n,
                      double a, double b, double d, double guidance_scale, bool is_guided, int threads);

// dtype of the predictions: 0 float32, 1 bfloat16, 2 float16; the state is float32.
void reverse_step_fwd_cuda(uintptr_t state, uintptr_t predictions, uintptr_t injected, uintptr_t out, int64_t n,
                           double a, double b, double d, double guidance_scale, bool is_guided, int dtype,
                           uintptr_t stream);
void reverse_step_bwd_cuda(uintptr_t grad, uintptr_t to_state, uintptr_t to_predictions, uintptr_t to_injected,
                           int64_t n, double a, double b, double d, double guidance_scale, bool is_guided, int dtype,
                           uintptr_t stream);

}  // namespace ld3m
