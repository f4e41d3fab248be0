#include "reverse_step.h"

#include <algorithm>

#include "multiversion.h"

namespace ld3m {
namespace {

constexpr int64_t kChunk = 2048;  // numbers of a pass: 8 KiB stay in a level-1 cache

struct Scalars {
    float a, b, d, to_uncond, to_cond, g;
};

Scalars scalars(double a, double b, double d, double g) {
    return {float(a), float(b), float(d), float((1 - g) * b), float(g * b), float(g)};
}

template <bool kGuided, bool kInjected>
LD3M_INLINE void step(const float* __restrict__ state, const float* __restrict__ uncond,
                      const float* __restrict__ cond, const float* __restrict__ injected, float* __restrict__ out,
                      int64_t low, int64_t high, const Scalars& s) {
    for (int64_t i = low; i < high; ++i) {
        float noise = uncond[i];
        if (kGuided) noise += s.g * (cond[i] - noise);
        float stepped = s.a * state[i] + s.b * noise;
        if (kInjected) stepped += s.d * injected[i];
        out[i] = stepped;
    }
}

LD3M_MULTIVERSION
void step_chunk(const float* state, const float* uncond, const float* cond, const float* injected, float* out,
                int64_t low, int64_t high, Scalars s) {
    if (cond && injected) step<true, true>(state, uncond, cond, injected, out, low, high, s);
    else if (cond) step<true, false>(state, uncond, cond, injected, out, low, high, s);
    else if (injected) step<false, true>(state, uncond, cond, injected, out, low, high, s);
    else step<false, false>(state, uncond, cond, injected, out, low, high, s);
}

LD3M_INLINE void scale(const float* __restrict__ in, float* __restrict__ out, int64_t low, int64_t high, float by) {
    for (int64_t i = low; i < high; ++i) out[i] = by * in[i];
}

// The chunk of `grad` comes from memory once: the later passes find it in the cache.
LD3M_MULTIVERSION
void pull_chunk(const float* grad, float* to_state, float* to_uncond, float* to_cond, float* to_injected, int64_t low,
                int64_t high, Scalars s) {
    if (to_state) scale(grad, to_state, low, high, s.a);
    if (to_uncond) scale(grad, to_uncond, low, high, to_cond ? s.to_uncond : s.b);
    if (to_cond) scale(grad, to_cond, low, high, s.to_cond);
    if (to_injected) scale(grad, to_injected, low, high, s.d);
}

template <typename Body>
void for_chunks(int64_t n, int threads, const Body& body) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && n > 8 * kChunk)
    for (int64_t low = 0; low < n; low += kChunk) body(low, std::min(low + kChunk, n));
}

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

}  // namespace

void reverse_step_fwd(uintptr_t state, uintptr_t predictions, uintptr_t injected, uintptr_t out, int64_t n, double a,
                      double b, double d, double guidance_scale, bool is_guided, int threads) {
    const Scalars s = scalars(a, b, d, guidance_scale);
    const float* uncond = floats(predictions);
    const float* cond = is_guided ? uncond + n : nullptr;
    for_chunks(n, threads, [=](int64_t low, int64_t high) {
        step_chunk(floats(state), uncond, cond, floats(injected), floats(out), low, high, s);
    });
}

void reverse_step_bwd(uintptr_t grad, uintptr_t to_state, uintptr_t to_predictions, uintptr_t to_injected, int64_t n,
                      double a, double b, double d, double guidance_scale, bool is_guided, int threads) {
    const Scalars s = scalars(a, b, d, guidance_scale);
    float* to_uncond = floats(to_predictions);
    float* to_cond = is_guided && to_uncond ? to_uncond + n : nullptr;
    for_chunks(n, threads, [=](int64_t low, int64_t high) {
        pull_chunk(floats(grad), floats(to_state), to_uncond, to_cond, floats(to_injected), low, high, s);
    });
}

}  // namespace ld3m
