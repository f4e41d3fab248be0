// In channels_last a channel is a column: norms of sixteen channels at once, by plain vectors. A window is one pixel, or
// four where there is pooling; tiles of windows are met twice while the first cache holds them.

#include <cmath>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "instance_norm_relu_pool.h"

namespace ld3m {
namespace {

// Of one image: columns [0, channels) of rows `stride` numbers apart.
struct Map {
    int64_t height, width, channels, stride;
    bool pool;
    int64_t pixels() const { return height * width; }
    int64_t windows() const { return pool ? pixels() / 4 : pixels(); }
    const int64_t* starts;  // of the windows
    // Where pixel k of a window begins.
    LD3M_INLINE int64_t at(int64_t window, int64_t k) const { return starts[window] + (k / 2 * width + k % 2) * stride; }
};

struct Norm {
    Wide mean, scale, bias;
    LD3M_INLINE void apply(const Wide& x, Wide& y) const { y = (x - mean) * scale + bias; }
};

template <typename T>
LD3M_INLINE void forward(const T* x, const T* weight, const T* bias, T* out, float* mean, float* rstd, const Map& map,
                         double eps, bool pool, std::vector<double>& sums) {
    const Slab slab{map.pixels(), map.stride, map.channels, 1};
    const double count = static_cast<double>(map.pixels());
    sums.assign(map.channels, 0.0);
    add_up(x, slab, sums.data(), [](int64_t, Wide&) {});
    for (int64_t c = 0; c < map.channels; ++c) mean[c] = static_cast<float>(sums[c] / count), sums[c] = 0;
    const int64_t channels = map.channels;
    add_up(x, slab, sums.data(), [mean, channels](int64_t i, Wide& v) {
        Wide centre;
        load_at(mean + i, std::min(kWide, channels - i), centre);
        v = (v - centre) * (v - centre);
    });
    for (int64_t c = 0; c < map.channels; ++c) rstd[c] = static_cast<float>(1 / std::sqrt(sums[c] / count + eps));
    for (int64_t first = 0; first < map.windows(); first += kTile) {
        const int64_t last = std::min(map.windows(), first + kTile);
        for (int64_t i = 0; i < map.channels; i += kWide) {
            const int64_t n = std::min(kWide, map.channels - i);
            Norm norm;
            Wide w;
            load_at(mean + i, n, norm.mean);
            load_at(rstd + i, n, norm.scale);
            load_at(bias + i, n, norm.bias);
            load_at(weight + i, n, w);
            norm.scale *= w;
            for (int64_t window = first; window < last; ++window) {
                Wide total = {};
                for (int64_t k = 0; k < (pool ? 4 : 1); ++k) {
                    Wide v, y;
                    load_at(x + map.at(window, k) + i, n, v);
                    norm.apply(v, y);
                    select(y < 0.0f, Wide{}, y, y);  // NaN stays, as in torch
                    total = k ? total + y : y;
                }
                if (pool) total *= 0.25f;
                store_at(total, n, out + window * map.stride + i);
            }
        }
    }
}

template <typename T>
LD3M_INLINE void backward(const T* grad, const T* x, const T* weight, const T* bias, const float* mean,
                          const float* rstd, float* by_weight, float* by_bias, T* grad_x, const Map& map, bool pool) {
    const float count = static_cast<float>(map.pixels());
    for (int64_t i = 0; i < map.channels; i += kWide) {
        const int64_t n = std::min(kWide, map.channels - i);
        Norm norm;
        Wide w, r;
        load_at(mean + i, n, norm.mean);
        load_at(rstd + i, n, r);
        load_at(bias + i, n, norm.bias);
        load_at(weight + i, n, w);
        norm.scale = r * w;
        // The cotangent before the ReLU, and the distance of x from its mean.
        const auto behind = [&](int64_t window, int64_t k, Wide& centred, Wide& d) __attribute__((always_inline)) {
            Wide v, y;
            load_at(x + map.at(window, k) + i, n, v);
            load_at(grad + window * map.stride + i, n, d);
            norm.apply(v, y);
            if (pool) d *= 0.25f;
            select(y <= 0.0f, Wide{}, d, d);
            centred = v - norm.mean;
        };
        double totals[kWide] = {}, products[kWide] = {};
        for (int64_t first = 0; first < map.windows(); first += kTile) {
            const int64_t last = std::min(map.windows(), first + kTile);
            Wide total = {}, product = {};
            for (int64_t window = first; window < last; ++window) {
                for (int64_t k = 0; k < (pool ? 4 : 1); ++k) {
                    Wide centred, d;
                    behind(window, k, centred, d);
                    total += d;
                    product += d * centred;
                }
            }
            for (int64_t k = 0; k < kWide; ++k) totals[k] += total[k], products[k] += product[k];
        }
        Wide total, product;
        for (int64_t k = 0; k < kWide; ++k) {
            total[k] = static_cast<float>(totals[k]), product[k] = static_cast<float>(products[k]) * r[k];
        }
        store_at(product, n, by_weight + i);
        store_at(total, n, by_bias + i);
        const Wide slope = -norm.scale * r * product / count, shift = -norm.scale * total / count;
        for (int64_t window = 0; window < map.windows(); ++window) {
            for (int64_t k = 0; k < (pool ? 4 : 1); ++k) {
                Wide centred, d;
                behind(window, k, centred, d);
                d = norm.scale * d + (slope * centred + shift);
                store_at(d, n, grad_x + map.at(window, k) + i);
            }
        }
    }
}

LD3M_MULTIVERSION
void forward_float(const float* x, const float* weight, const float* bias, float* out, float* mean, float* rstd,
                   const Map& map, double eps, std::vector<double>& sums) {
    map.pool ? forward(x, weight, bias, out, mean, rstd, map, eps, true, sums)
             : forward(x, weight, bias, out, mean, rstd, map, eps, false, sums);
}

LD3M_MULTIVERSION
void forward_bfloat16(const BFloat16* x, const BFloat16* weight, const BFloat16* bias, BFloat16* out, float* mean,
                      float* rstd, const Map& map, double eps, std::vector<double>& sums) {
    map.pool ? forward(x, weight, bias, out, mean, rstd, map, eps, true, sums)
             : forward(x, weight, bias, out, mean, rstd, map, eps, false, sums);
}

LD3M_MULTIVERSION
void backward_float(const float* grad, const float* x, const float* weight, const float* bias, const float* mean,
                    const float* rstd, float* by_weight, float* by_bias, float* grad_x, const Map& map) {
    map.pool ? backward(grad, x, weight, bias, mean, rstd, by_weight, by_bias, grad_x, map, true)
             : backward(grad, x, weight, bias, mean, rstd, by_weight, by_bias, grad_x, map, false);
}

LD3M_MULTIVERSION
void backward_bfloat16(const BFloat16* grad, const BFloat16* x, const BFloat16* weight, const BFloat16* bias,
                       const float* mean, const float* rstd, float* by_weight, float* by_bias, BFloat16* grad_x,
                       const Map& map) {
    map.pool ? backward(grad, x, weight, bias, mean, rstd, by_weight, by_bias, grad_x, map, true)
             : backward(grad, x, weight, bias, mean, rstd, by_weight, by_bias, grad_x, map, false);
}

// The sums over images of (batch, channels) float32, in the images' order.
template <typename T>
void add_images(const float* parts, T* to, int64_t batch, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double total = 0;
        for (int64_t b = 0; b < batch; ++b) total += parts[b * channels + c];
        T numbers[kWide];
        Wide wide = {};
        wide[0] = static_cast<float>(total);
        store(wide, numbers);
        to[c] = numbers[0];
    }
}

// Where windows begin, numbers from the first of an image.
std::vector<int64_t> window_starts(int64_t height, int64_t width, int64_t channels, bool pool) {
    const int64_t side = pool ? 2 : 1;
    std::vector<int64_t> starts;
    starts.reserve(height * width / (side * side));
    for (int64_t row = 0; row < height; row += side) {
        for (int64_t column = 0; column < width; column += side) starts.push_back((row * width + column) * channels);
    }
    return starts;
}

// Images cut into runs of whole vectors of channels where there are more threads than images.
template <typename Body>
void for_maps(int64_t batch, int64_t channels, int64_t threads, Body body) {
    const int64_t vectors = (channels + kWide - 1) / kWide;
    const int64_t pieces = std::min(vectors, batch ? (threads + batch - 1) / batch : 1);
#pragma omp parallel num_threads(threads)
    {
        std::vector<double> sums;
#pragma omp for
        for (int64_t k = 0; k < batch * pieces; ++k) {
            const int64_t piece = k % pieces, first = kWide * (piece * vectors / pieces);
            const int64_t last = std::min(channels, kWide * ((piece + 1) * vectors / pieces));
            body(k / pieces, first, last - first, sums);
        }
    }
}

}  // namespace

void instance_norm_relu_pool_last_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                      uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                      double eps, bool pool, bool is_bfloat16, int64_t threads) {
    const std::vector<int64_t> starts = window_starts(height, width, channels, pool);
    for_maps(batch, channels, threads, [&](int64_t image, int64_t first, int64_t count, auto& sums) {
        const Map map{height, width, count, channels, pool, starts.data()};
        const int64_t row = image * channels + first, start = image * map.pixels() * channels + first;
        const auto call = [&](auto* kind, auto run) {
            using T = std::remove_pointer_t<decltype(kind)>;
            run(at<T>(x, start), at<T>(weight, first), at<T>(bias, first),
                at<T>(out, image * map.windows() * channels + first), at<float>(mean, row), at<float>(rstd, row), map,
                eps, sums);
        };
        is_bfloat16 ? call(at<BFloat16>(0), forward_bfloat16) : call(at<float>(0), forward_float);
    });
}

void instance_norm_relu_pool_last_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                      uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                      uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height,
                                      int64_t width, bool pool, bool is_bfloat16, int64_t threads) {
    const float *by_weight = at<float>(sums), *by_bias = at<float>(sums, batch * channels);
    const std::vector<int64_t> starts = window_starts(height, width, channels, pool);
    for_maps(batch, channels, threads, [&](int64_t image, int64_t first, int64_t count, auto&) {
        const Map map{height, width, count, channels, pool, starts.data()};
        const int64_t row = image * channels + first, start = image * map.pixels() * channels + first;
        const auto call = [&](auto* kind, auto run) {
            using T = std::remove_pointer_t<decltype(kind)>;
            run(at<T>(grad, image * map.windows() * channels + first), at<T>(x, start), at<T>(weight, first),
                at<T>(bias, first), at<float>(mean, row), at<float>(rstd, row), at<float>(sums, row),
                at<float>(sums, batch * channels + row), at<T>(grad_x, start), map);
        };
        is_bfloat16 ? call(at<BFloat16>(0), backward_bfloat16) : call(at<float>(0), backward_float);
    });
    const auto add = [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        add_images(by_weight, at<T>(grad_weight), batch, channels);
        add_images(by_bias, at<T>(grad_bias), batch, channels);
    };
    is_bfloat16 ? add(at<BFloat16>(0)) : add(at<float>(0));
}

}  // namespace ld3m
