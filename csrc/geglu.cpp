// gelu(x) = x F(x) with the normal distribution function F(x) = (1 + erf(x / sqrt 2)) / 2; its derivative is F + x F'.

#include "geglu.h"

#include "columns.h"

namespace ld3m {
namespace {

constexpr float kRootHalf = 0.70710678118654752f, kDensity = 0.39894228040143268f;  // density: 1 / sqrt(2 pi)

LD3M_INLINE void normal_distribution(const Wide& x, Wide& to) {
    error_function(x * kRootHalf, to);
    to = to * 0.5f + 0.5f;
}

template <typename T>
LD3M_INLINE void forward(const T* halves, T* out, int64_t width) {
    for (int64_t i = 0; i < width; i += kWide) {
        const int64_t n = std::min(kWide, width - i);
        Wide value, gate, below;
        load_at(halves + i, n, value);
        load_at(halves + width + i, n, gate);
        normal_distribution(gate, below);
        store_at(value * (gate * below), n, out + i);
    }
}

template <typename T>
LD3M_INLINE void backward(const T* grad, const T* halves, T* grad_halves, int64_t width) {
    for (int64_t i = 0; i < width; i += kWide) {
        const int64_t n = std::min(kWide, width - i);
        Wide value, gate, below, density, g;
        load_at(grad + i, n, g);
        load_at(halves + i, n, value);
        load_at(halves + width + i, n, gate);
        normal_distribution(gate, below);
        exponential(gate * gate * -0.5f, density);
        store_at(g * (gate * below), n, grad_halves + i);
        store_at(g * value * (below + gate * density * kDensity), n, grad_halves + width + i);
    }
}

LD3M_MULTIVERSION
void forward_float(const float* halves, float* out, int64_t width) { forward(halves, out, width); }

LD3M_MULTIVERSION
void forward_bfloat16(const BFloat16* halves, BFloat16* out, int64_t width) { forward(halves, out, width); }

LD3M_MULTIVERSION
void backward_float(const float* grad, const float* halves, float* to, int64_t width) {
    backward(grad, halves, to, width);
}

LD3M_MULTIVERSION
void backward_bfloat16(const BFloat16* grad, const BFloat16* halves, BFloat16* to, int64_t width) {
    backward(grad, halves, to, width);
}

}  // namespace

void geglu_fwd(uintptr_t halves, uintptr_t out, int64_t rows, int64_t width, bool is_bfloat16, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t from = 2 * r * width, to = r * width;
        is_bfloat16 ? forward_bfloat16(at<BFloat16>(halves, from), at<BFloat16>(out, to), width)
                    : forward_float(at<float>(halves, from), at<float>(out, to), width);
    }
}

void geglu_bwd(uintptr_t grad, uintptr_t halves, uintptr_t grad_halves, int64_t rows, int64_t width, bool is_bfloat16,
               int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t wide = 2 * r * width, narrow = r * width;
        is_bfloat16 ? backward_bfloat16(at<BFloat16>(grad, narrow), at<BFloat16>(halves, wide),
                                        at<BFloat16>(grad_halves, wide), width)
                    : backward_float(at<float>(grad, narrow), at<float>(halves, wide), at<float>(grad_halves, wide),
                                     width);
    }
}

}  // namespace ld3m
