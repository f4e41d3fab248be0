// A slab of whole groups of one sample is read three times, the later times from cache: for mean, deviation and result;
// its columns are channels, so that sums over pixels and constants by channel are both plain vectors.

#include "group_norm_silu.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "columns.h"

namespace ld3m {
namespace {

// By column, from what is by group.
struct Columns {
    std::vector<float> mean, scale, bias, slope, shift;
    std::vector<double> sums, products;

    void resize(int64_t width) {
        for (auto* numbers : {&mean, &scale, &bias, &slope, &shift}) numbers->assign(width + kWide, 0.0f);
        for (auto* numbers : {&sums, &products}) numbers->assign(width + kWide, 0.0);
    }
};

template <typename T>
LD3M_INLINE void forward(const T* x, const T* weight, const T* bias, T* out, float* mean, float* rstd, const Slab& slab,
                         double eps, bool silu, Columns& by) {
    by.resize(slab.width);
    const int64_t groups = slab.width / slab.group;
    add_up(x, slab, by.sums.data(), [](int64_t, Wide&) {});
    for (int64_t g = 0; g < groups; ++g) {
        double total = 0;
        for (int64_t i = g * slab.group; i < (g + 1) * slab.group; ++i) total += by.sums[i];
        mean[g] = static_cast<float>(total / slab.count());
        for (int64_t i = g * slab.group; i < (g + 1) * slab.group; ++i) by.mean[i] = mean[g], by.sums[i] = 0;
    }
    const float* means = by.mean.data();
    add_up(x, slab, by.sums.data(), [means](int64_t i, Wide& v) {
        Wide centre;
        load(means + i, centre);
        v = (v - centre) * (v - centre);
    });
    for (int64_t g = 0; g < groups; ++g) {
        double squares = 0;
        for (int64_t i = g * slab.group; i < (g + 1) * slab.group; ++i) squares += by.sums[i];
        rstd[g] = static_cast<float>(1 / std::sqrt(squares / slab.count() + eps));
    }
    for (int64_t i = 0; i < slab.width; i += kWide) {
        const int64_t n = std::min(kWide, slab.width - i);
        Wide w, b;
        load_at(weight + i, n, w);
        load_at(bias + i, n, b);
        for (int64_t k = 0; k < n; ++k) by.scale[i + k] = w[k] * rstd[(i + k) / slab.group], by.bias[i + k] = b[k];
    }
    for (int64_t p = 0; p < slab.pixels; ++p) {
        for (int64_t i = 0; i < slab.width; i += kWide) {
            const int64_t n = std::min(kWide, slab.width - i), at = p * slab.stride + i;
            Wide v, centre, scale, shift, share;
            load_at(x + at, n, v);
            load(&by.mean[i], centre);
            load(&by.scale[i], scale);
            load(&by.bias[i], shift);
            v = (v - centre) * scale + shift;
            if (silu) {
                sigmoid(v, share);
                v *= share;
            }
            store_at(v, n, out + at);
        }
    }
}

template <typename T>
LD3M_INLINE void backward(const T* grad, const T* x, const T* weight, const T* bias, const float* mean,
                          const float* rstd, T* grad_x, const Slab& slab, bool silu, Columns& by) {
    by.resize(slab.width);
    for (int64_t i = 0; i < slab.width; i += kWide) {
        const int64_t n = std::min(kWide, slab.width - i);
        Wide w, b;
        load_at(weight + i, n, w);
        load_at(bias + i, n, b);
        for (int64_t k = 0; k < n; ++k) {
            const int64_t g = (i + k) / slab.group;
            by.mean[i + k] = mean[g], by.scale[i + k] = w[k] * rstd[g], by.bias[i + k] = b[k];
        }
    }
    // The cotangent behind the norm, times scale; once for its sums, once more for the result.
    const auto behind = [&](int64_t p, int64_t i, int64_t n, Wide& centred, Wide& d) __attribute__((always_inline)) {
        const int64_t at = p * slab.stride + i;
        Wide centre, scale, shift, share;
        load_at(x + at, n, centred);
        load_at(grad + at, n, d);
        load(&by.mean[i], centre);
        load(&by.scale[i], scale);
        centred -= centre;
        if (silu) {
            load(&by.bias[i], shift);
            const Wide u = centred * scale + shift;
            sigmoid(u, share);
            d *= share * (1.0f + u * (1.0f - share));
        }
        d *= scale;
    };
    for (int64_t first = 0; first < slab.pixels; first += kTile) {
        const int64_t last = std::min(slab.pixels, first + kTile);
        for (int64_t i = 0; i < slab.width; i += kWide) {
            const int64_t n = std::min(kWide, slab.width - i);
            Wide total = {}, product = {};
            for (int64_t p = first; p < last; ++p) {
                Wide centred, d;
                behind(p, i, n, centred, d);
                total += d;
                product += d * centred;
            }
            for (int64_t k = 0; k < n; ++k) by.sums[i + k] += total[k], by.products[i + k] += product[k];
        }
    }
    for (int64_t g = 0; g < slab.width / slab.group; ++g) {
        double total = 0, product = 0;
        for (int64_t i = g * slab.group; i < (g + 1) * slab.group; ++i) total += by.sums[i], product += by.products[i];
        const double slope = -product / slab.count() * rstd[g] * rstd[g];
        for (int64_t i = g * slab.group; i < (g + 1) * slab.group; ++i) {
            by.slope[i] = static_cast<float>(slope), by.shift[i] = static_cast<float>(-total / slab.count());
        }
    }
    for (int64_t p = 0; p < slab.pixels; ++p) {
        for (int64_t i = 0; i < slab.width; i += kWide) {
            const int64_t n = std::min(kWide, slab.width - i);
            Wide centred, d, slope, shift;
            behind(p, i, n, centred, d);
            load(&by.slope[i], slope);
            load(&by.shift[i], shift);
            d += centred * slope + shift;
            store_at(d, n, grad_x + p * slab.stride + i);
        }
    }
}

LD3M_MULTIVERSION
void forward_float(const float* x, const float* weight, const float* bias, float* out, float* mean, float* rstd,
                   const Slab& slab, double eps, bool silu, Columns& by) {
    silu ? forward(x, weight, bias, out, mean, rstd, slab, eps, true, by)
         : forward(x, weight, bias, out, mean, rstd, slab, eps, false, by);
}

LD3M_MULTIVERSION
void forward_bfloat16(const BFloat16* x, const BFloat16* weight, const BFloat16* bias, BFloat16* out, float* mean,
                      float* rstd, const Slab& slab, double eps, bool silu, Columns& by) {
    silu ? forward(x, weight, bias, out, mean, rstd, slab, eps, true, by)
         : forward(x, weight, bias, out, mean, rstd, slab, eps, false, by);
}

LD3M_MULTIVERSION
void backward_float(const float* grad, const float* x, const float* weight, const float* bias, const float* mean,
                    const float* rstd, float* grad_x, const Slab& slab, bool silu, Columns& by) {
    silu ? backward(grad, x, weight, bias, mean, rstd, grad_x, slab, true, by)
         : backward(grad, x, weight, bias, mean, rstd, grad_x, slab, false, by);
}

LD3M_MULTIVERSION
void backward_bfloat16(const BFloat16* grad, const BFloat16* x, const BFloat16* weight, const BFloat16* bias,
                       const float* mean, const float* rstd, BFloat16* grad_x, const Slab& slab, bool silu,
                       Columns& by) {
    silu ? backward(grad, x, weight, bias, mean, rstd, grad_x, slab, true, by)
         : backward(grad, x, weight, bias, mean, rstd, grad_x, slab, false, by);
}

// Call `body(sample, first group, slab, columns)` for every sample, cut into slabs where there are more threads.
template <typename Body>
void for_slabs(int64_t batch, int64_t pixels, int64_t channels, int64_t groups, int64_t threads, Body body) {
    const int64_t group = channels / groups, pieces = std::min(groups, batch ? (threads + batch - 1) / batch : 1);
#pragma omp parallel num_threads(threads)
    {
        Columns by;
#pragma omp for
        for (int64_t k = 0; k < batch * pieces; ++k) {
            const int64_t piece = k % pieces, first = piece * groups / pieces, last = (piece + 1) * groups / pieces;
            body(k / pieces, first, Slab{pixels, channels, (last - first) * group, group}, by);
        }
    }
}

}  // namespace

void group_norm_silu_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean, uintptr_t rstd,
                         int64_t batch, int64_t pixels, int64_t channels, int64_t groups, double eps, bool silu,
                         bool is_bfloat16, int64_t threads) {
    for_slabs(batch, pixels, channels, groups, threads, [&](int64_t sample, int64_t first, const Slab& slab, auto& by) {
        const int64_t column = first * slab.group, start = sample * pixels * channels + column;
        const int64_t row = sample * groups + first;
        const auto call = [&](auto* kind, auto run) {
            using T = std::remove_pointer_t<decltype(kind)>;
            run(at<T>(x, start), at<T>(weight, column), at<T>(bias, column), at<T>(out, start), at<float>(mean, row),
                at<float>(rstd, row), slab, eps, silu, by);
        };
        is_bfloat16 ? call(at<BFloat16>(0), forward_bfloat16) : call(at<float>(0), forward_float);
    });
}

void group_norm_silu_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t rstd,
                         uintptr_t grad_x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, bool silu,
                         bool is_bfloat16, int64_t threads) {
    for_slabs(batch, pixels, channels, groups, threads, [&](int64_t sample, int64_t first, const Slab& slab, auto& by) {
        const int64_t column = first * slab.group, start = sample * pixels * channels + column;
        const int64_t row = sample * groups + first;
        const auto call = [&](auto* kind, auto run) {
            using T = std::remove_pointer_t<decltype(kind)>;
            run(at<T>(grad, start), at<T>(x, start), at<T>(weight, column), at<T>(bias, column), at<float>(mean, row),
                at<float>(rstd, row), at<T>(grad_x, start), slab, silu, by);
        };
        is_bfloat16 ? call(at<BFloat16>(0), backward_bfloat16) : call(at<float>(0), backward_float);
    });
}

}  // namespace ld3m
