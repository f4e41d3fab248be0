#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.h"
#include "reverse_step.h"

namespace ld3m {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;  // a float32 pack is one 16-byte access

template <typename T>
struct alignas(kPack * sizeof(T)) Pack {
    T values[kPack];
};

// Launch shape: one thread a pack, n rounded up. Where an address is off a pack's boundary, or n no multiple of it (the
// conditional rows start at n), kWidth is 1 and a thread takes one number.
template <typename T, int kWidth>
__device__ void load(const T* from, int64_t i, float (&to)[kWidth]) {
    if constexpr (kWidth == kPack) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from + i);
        for (int k = 0; k < kPack; ++k) to[k] = float(pack.values[k]);
    } else {
        to[0] = float(from[i]);
    }
}

template <typename T, int kWidth>
__device__ void store(T* to, int64_t i, const float (&from)[kWidth], float scale = 1) {
    if constexpr (kWidth == kPack) {
        Pack<T> pack;
        for (int k = 0; k < kPack; ++k) pack.values[k] = T(scale * from[k]);
        *reinterpret_cast<Pack<T>*>(to + i) = pack;
    } else {
        to[i] = T(scale * from[0]);
    }
}

template <typename T, int kWidth>
__global__ void fwd_kernel(const float* __restrict__ state, const T* __restrict__ uncond, const T* __restrict__ cond,
                           const float* __restrict__ injected, float* __restrict__ out, int64_t n, float a, float b,
                           float d, float g) {
    const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
    if (i >= n) return;
    float z[kWidth], noise[kWidth], other[kWidth];
    load(state, i, z);
    load(uncond, i, noise);
    if (cond) {
        load(cond, i, other);
        for (int k = 0; k < kWidth; ++k) noise[k] += g * (other[k] - noise[k]);
    }
    for (int k = 0; k < kWidth; ++k) z[k] = a * z[k] + b * noise[k];
    if (injected) {
        load(injected, i, other);
        for (int k = 0; k < kWidth; ++k) z[k] += d * other[k];
    }
    store(out, i, z);
}

template <typename T, int kWidth>
__global__ void bwd_kernel(const float* __restrict__ grad, float* __restrict__ to_state, T* __restrict__ to_uncond,
                           T* __restrict__ to_cond, float* __restrict__ to_injected, int64_t n, float a,
                           float by_uncond, float by_cond, float d) {
    const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
    if (i >= n) return;
    float cotangent[kWidth];
    load(grad, i, cotangent);
    if (to_state) store(to_state, i, cotangent, a);
    if (to_uncond) store(to_uncond, i, cotangent, by_uncond);
    if (to_cond) store(to_cond, i, cotangent, by_cond);
    if (to_injected) store(to_injected, i, cotangent, d);
}

bool is_packed(int64_t n, uintptr_t addresses, uintptr_t predictions, size_t size) {
    return n % kPack == 0 && addresses % (kPack * sizeof(float)) == 0 && predictions % (kPack * size) == 0;
}

unsigned blocks(int64_t n, int width) { return unsigned((n + int64_t(kThreads) * width - 1) / (kThreads * width)); }

template <typename T>
void fwd(uintptr_t state, uintptr_t predictions, uintptr_t injected, uintptr_t out, int64_t n, float a, float b,
         float d, float g, bool is_guided, cudaStream_t stream) {
    const bool packed = is_packed(n, state | injected | out, predictions, sizeof(T));
    const auto kernel = packed ? fwd_kernel<T, kPack> : fwd_kernel<T, 1>;
    const T* uncond = reinterpret_cast<const T*>(predictions);
    kernel<<<blocks(n, packed ? kPack : 1), kThreads, 0, stream>>>(
        reinterpret_cast<const float*>(state), uncond, is_guided ? uncond + n : nullptr,
        reinterpret_cast<const float*>(injected), reinterpret_cast<float*>(out), n, a, b, d, g);
}

template <typename T>
void bwd(uintptr_t grad, uintptr_t to_state, uintptr_t to_predictions, uintptr_t to_injected, int64_t n, float a,
         float by_uncond, float by_cond, float d, bool is_guided, cudaStream_t stream) {
    const bool packed = is_packed(n, grad | to_state | to_injected, to_predictions, sizeof(T));
    const auto kernel = packed ? bwd_kernel<T, kPack> : bwd_kernel<T, 1>;
    T* to_uncond = reinterpret_cast<T*>(to_predictions);
    kernel<<<blocks(n, packed ? kPack : 1), kThreads, 0, stream>>>(
        reinterpret_cast<const float*>(grad), reinterpret_cast<float*>(to_state), to_uncond,
        is_guided && to_uncond ? to_uncond + n : nullptr, reinterpret_cast<float*>(to_injected), n, a, by_uncond,
        by_cond, d);
}

}  // namespace

void reverse_step_fwd_cuda(uintptr_t state, uintptr_t predictions, uintptr_t injected, uintptr_t out, int64_t n,
                           double a, double b, double d, double guidance_scale, bool is_guided, int dtype,
                           uintptr_t stream) {
    if (n == 0) return;
    const auto run = dtype == 0 ? fwd<float> : dtype == 1 ? fwd<__nv_bfloat16> : fwd<__half>;
    run(state, predictions, injected, out, n, float(a), float(b), float(d), float(guidance_scale), is_guided,
        reinterpret_cast<cudaStream_t>(stream));
    check_launch("reverse_step");
}

void reverse_step_bwd_cuda(uintptr_t grad, uintptr_t to_state, uintptr_t to_predictions, uintptr_t to_injected,
                           int64_t n, double a, double b, double d, double guidance_scale, bool is_guided, int dtype,
                           uintptr_t stream) {
    if (n == 0) return;
    const double by_uncond = is_guided ? (1 - guidance_scale) * b : b;
    const auto run = dtype == 0 ? bwd<float> : dtype == 1 ? bwd<__nv_bfloat16> : bwd<__half>;
    run(grad, to_state, to_predictions, to_injected, n, float(a), float(by_uncond), float(guidance_scale * b),
        float(d), is_guided, reinterpret_cast<cudaStream_t>(stream));
    check_launch("reverse_step_bwd");
}

}  // namespace ld3m
