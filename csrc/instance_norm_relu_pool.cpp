// A plane is read from memory once a pass and once more from cache; blocks of whole row pairs keep the inner loops long
// and contiguous even where a row has four pixels.

#include "instance_norm_relu_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "multiversion.h"

namespace ld3m {
namespace {

constexpr int64_t kBlock = 1024;  // numbers summed in float32, and kept in scratch, at a time; wide rows take more

struct Plane {
    int64_t height, width;
    bool pool;
    int64_t size() const { return height * width; }
    int64_t pooled_size() const { return pool ? size() / 4 : size(); }
    int64_t block() const {  // a multiple of two rows
        return pool ? 2 * width * std::max<int64_t>(1, kBlock / (2 * width)) : kBlock;
    }
};

struct Affine {
    float mean, scale, bias;  // (x - mean) * scale + bias; both passes round it alike, so their ReLUs agree
};

struct Sums {
    double grad, grad_centred;
};

// Sums by hand: GCC adds up the lanes of a vectorised reduction one after the other. Four strands of 8 lanes hide most
// of an addition's latency and fit the registers from SSE2 to AVX-512.
typedef float Lanes __attribute__((vector_size(32)));
typedef float Half __attribute__((vector_size(16)));
constexpr int64_t kLanes = 8, kStrands = 4, kStep = kLanes * kStrands;

template <typename To>
LD3M_INLINE void load(const float* from, To& to) {
    std::memcpy(&to, from, sizeof(to));
}

struct Strands {
    Lanes lanes[kStrands] = {};

    LD3M_INLINE float sum() const {  // as a tree
        const Lanes all = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
        float numbers[kLanes];
        std::memcpy(numbers, &all, sizeof(all));
        Half a, b;
        load(numbers, a);
        load(numbers + 4, b);
        a += b;
        return (a[0] + a[1]) + (a[2] + a[3]);
    }
};

// The sum of what `term` makes of each number, in place: of kBlock numbers in float32, of these in float64.
template <typename Term>
LD3M_INLINE double sum(const float* __restrict__ x, int64_t n, Term term) {
    double total = 0;
    for (int64_t i = 0; i < n;) {
        Strands strands;
        for (const int64_t stop = std::min(n, i + kBlock); i + kStep <= stop; i += kStep) {
            for (int64_t k = 0; k < kStrands; ++k) {
                Lanes v;
                load(x + i + k * kLanes, v);
                term(v);
                strands.lanes[k] += v;
            }
        }
        total += strands.sum();
        for (; i < n && n - i < kStep; ++i) {
            float v = x[i];
            term(v);
            total += v;
        }
    }
    return total;
}

LD3M_MULTIVERSION
void moments(const float* __restrict__ x, int64_t n, double eps, float& mean, float& rstd) {
    mean = static_cast<float>(sum(x, n, [](auto&) {}) / n);
    const double squares = sum(x, n, [mean](auto& v) {
        v -= mean;
        v *= v;
    });
    rstd = static_cast<float>(1 / std::sqrt(squares / n + eps));
}

LD3M_MULTIVERSION
void activate(const float* __restrict__ x, float* __restrict__ out, int64_t n, Affine f) {
    for (int64_t i = 0; i < n; ++i) {
        const float y = (x[i] - f.mean) * f.scale + f.bias;
        out[i] = y < 0 ? 0 : y;  // NaN stays, as in torch
    }
}

// Average 2x2 windows of n pixels; `pairs` holds n / 2 horizontal sums.
LD3M_MULTIVERSION
void average(const float* __restrict__ y, float* __restrict__ pairs, float* __restrict__ out, int64_t n,
             int64_t width) {
    for (int64_t i = 0; i < n / 2; ++i) pairs[i] = 0.25f * (y[2 * i] + y[2 * i + 1]);
    const int64_t half = width / 2;
    for (int64_t row = 0; row < n / (2 * width); ++row) {
        const float* top = pairs + 2 * row * half;
        for (int64_t i = 0; i < half; ++i) out[row * half + i] = top[i] + top[half + i];
    }
}

// The transpose of `average`: n pixels from n / 4 cotangents.
LD3M_MULTIVERSION
void spread(const float* __restrict__ grad, float* __restrict__ out, int64_t n, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t row = 0; row < n / (2 * width); ++row) {
        float *__restrict__ top = out + 2 * row * width, *__restrict__ bottom = top + width;
        for (int64_t i = 0; i < half; ++i) {
            const float share = 0.25f * grad[row * half + i];
            top[2 * i] = top[2 * i + 1] = bottom[2 * i] = bottom[2 * i + 1] = share;
        }
    }
}

// grad_x = the cotangent behind the ReLU, from that before it; returns its sum and that of its product with x - mean.
LD3M_MULTIVERSION
Sums deactivate(const float* __restrict__ x, const float* __restrict__ grad, float* __restrict__ grad_x, int64_t n,
                Affine f) {
    Sums total{0, 0};
    for (int64_t i = 0; i < n;) {
        const int64_t stop = std::min(n, i + kBlock);
        for (int64_t j = i; j < stop; ++j) {
            const float g = grad[j];  // read in any case: a branch here would not vectorise
            grad_x[j] = (x[j] - f.mean) * f.scale + f.bias <= 0 ? 0 : g;
        }
        Strands cotangents, products;
        for (; i + kStep <= stop; i += kStep) {
            for (int64_t k = 0; k < kStrands; ++k) {
                Lanes centred, g;
                load(x + i + k * kLanes, centred);
                load(grad_x + i + k * kLanes, g);
                centred -= f.mean;
                cotangents.lanes[k] += g;
                products.lanes[k] += g * centred;
            }
        }
        total.grad += cotangents.sum();
        total.grad_centred += products.sum();
        for (; i < n && n - i < kStep; ++i) {
            total.grad += grad_x[i];
            total.grad_centred += grad_x[i] * (x[i] - f.mean);
        }
    }
    return total;
}

LD3M_MULTIVERSION
void normalise_grad(const float* __restrict__ x, float* __restrict__ grad_x, int64_t n, float mean, float scale,
                    float slope, float shift) {
    for (int64_t i = 0; i < n; ++i) grad_x[i] = scale * grad_x[i] + (slope * (x[i] - mean) + shift);
}

void forward_plane(const float* x, float* out, Plane plane, Affine f, std::vector<float>& scratch) {
    const int64_t n = plane.size(), block = plane.block();
    if (!plane.pool) return activate(x, out, n, f);
    scratch.resize(block + block / 2);
    for (int64_t start = 0; start < n; start += block) {
        const int64_t length = std::min(block, n - start);
        activate(x + start, scratch.data(), length, f);
        average(scratch.data(), scratch.data() + block, out + start / 4, length, plane.width);
    }
}

Sums backward_plane(const float* grad, const float* x, float* grad_x, Plane plane, Affine f, float rstd,
                    std::vector<float>& scratch) {
    const int64_t n = plane.size(), block = plane.block();
    Sums total{0, 0};
    for (int64_t start = 0; start < n; start += block) {
        const int64_t length = std::min(block, n - start);
        const float* before = grad + start;
        if (plane.pool) {
            scratch.resize(block);
            spread(grad + start / 4, scratch.data(), length, plane.width);
            before = scratch.data();
        }
        const Sums part = deactivate(x + start, before, grad_x + start, length, f);
        total.grad += part.grad;
        total.grad_centred += part.grad_centred;
    }
    const double slope = -f.scale * rstd * rstd * total.grad_centred / n, shift = -f.scale * total.grad / n;
    normalise_grad(x, grad_x, n, f.mean, f.scale, static_cast<float>(slope), static_cast<float>(shift));
    return {total.grad, total.grad_centred * rstd};
}

// Fresh memory comes as 4 KiB pages whose first touch costs more than all our arithmetic; ask for 2 MiB pages.
void advise_huge_pages(uintptr_t begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 2 << 20;
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
#endif
}

const float* input(uintptr_t pointer) { return reinterpret_cast<const float*>(pointer); }
float* output(uintptr_t pointer) { return reinterpret_cast<float*>(pointer); }

}  // namespace

void instance_norm_relu_pool_fwd(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                 uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 double eps, bool pool, int64_t threads) {
    const Plane plane{height, width, pool};
    const int64_t planes = batch * channels, n = plane.size(), m = plane.pooled_size();
    advise_huge_pages(out, planes * m * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch;
#pragma omp for
        for (int64_t p = 0; p < planes; ++p) {
            const int64_t c = p % channels;
            float plane_mean, plane_rstd;
            moments(input(x) + p * n, n, eps, plane_mean, plane_rstd);
            output(mean)[p] = plane_mean;
            output(rstd)[p] = plane_rstd;
            const Affine f{plane_mean, plane_rstd * input(weight)[c], input(bias)[c]};
            forward_plane(input(x) + p * n, output(out) + p * m, plane, f, scratch);
        }
    }
}

void instance_norm_relu_pool_bwd(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                 uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                 uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 bool pool, int64_t threads) {
    const Plane plane{height, width, pool};
    const int64_t planes = batch * channels, n = plane.size(), m = plane.pooled_size();
    float *by_weight = output(sums), *by_bias = by_weight + planes;
    advise_huge_pages(grad_x, planes * n * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch;
#pragma omp for
        for (int64_t p = 0; p < planes; ++p) {
            const int64_t c = p % channels;
            const float plane_rstd = input(rstd)[p];
            const Affine f{input(mean)[p], plane_rstd * input(weight)[c], input(bias)[c]};
            const Sums total = backward_plane(input(grad) + p * m, input(x) + p * n, output(grad_x) + p * n, plane, f,
                                              plane_rstd, scratch);
            by_weight[p] = static_cast<float>(total.grad_centred);
            by_bias[p] = static_cast<float>(total.grad);
        }
    }
    for (int64_t c = 0; c < channels; ++c) {  // in the images' order, so the threads' number does not matter
        double to_weight = 0, to_bias = 0;
        for (int64_t p = c; p < planes; p += channels) to_weight += by_weight[p], to_bias += by_bias[p];
        output(grad_weight)[c] = static_cast<float>(to_weight);
        output(grad_bias)[c] = static_cast<float>(to_bias);
    }
}

}  // namespace ld3m
