// Instance norm, ReLU and 2x2 average pooling of (batch, channels, height, width) planes; see ld3m/ops.
#pragma once

#include <cstdint>

namespace ld3m {

// Without `pool`, out and grad have x's size. mean and rstd have one float32 a plane.
void instance_norm_relu_pool_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                 uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 double eps, bool pool, int64_t threads);

// `sums` is scratch of 2 * batch * channels float32.
void instance_norm_relu_pool_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                 uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                 uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 bool pool, int64_t threads);

// The same of channels_last, that is of (batch, height, width, channels); is_bfloat16 is of every tensor but mean, rstd
// and sums.
void instance_norm_relu_pool_last_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                      uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                      double eps, bool pool, bool is_bfloat16, int64_t threads);

void instance_norm_relu_pool_last_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                      uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                      uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height,
                                      int64_t width, bool pool, bool is_bfloat16, int64_t threads);

// dtype: 0 float32, 1 bfloat16, 2 float16 of every tensor but mean, rstd and sums.
void instance_norm_relu_pool_fwd_cuda(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                      uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                      double eps, bool pool, int dtype, uintptr_t stream);

void instance_norm_relu_pool_bwd_cuda(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                      uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                      uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height,
                                      int64_t width, bool pool, int dtype, uintptr_t stream);

}  // namespace ld3m
