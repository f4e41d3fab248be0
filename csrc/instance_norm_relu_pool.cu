// A team of threads has one plane: a warp up to kWarpPixels, else a block. Its threads walk over windows, 2x2 pixels
// that are averaged or single pixels without pooling; every pass after the first finds the plane in cache.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "device.h"
#include "instance_norm_relu_pool.h"

namespace ld3m {
namespace {

constexpr int kThreads = 256;        // a block: 8 teams of a warp, or one team
constexpr int kWarpPixels = 32 * 32;  // 32 pixels a thread

template <bool kPool>
struct Window {
    static constexpr int kPixels = kPool ? 4 : 1;
    float pixels[kPixels];
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
    T left, right;
};

struct Sizes {
    int64_t planes;
    int channels, width, windows;
};

__device__ int corner(int window, int width) {  // of a 2x2 window: its first pixel
    const int half = width / 2;
    return window / half * 2 * width + window % half * 2;
}

template <typename T, bool kPool>
__device__ Window<kPool> load(const T* __restrict__ plane, int window, int width) {
    if constexpr (kPool) {
        const T* first = plane + corner(window, width);
        const Pair<T> top = *reinterpret_cast<const Pair<T>*>(first);
        const Pair<T> bottom = *reinterpret_cast<const Pair<T>*>(first + width);
        return {static_cast<float>(top.left), static_cast<float>(top.right), static_cast<float>(bottom.left),
                static_cast<float>(bottom.right)};
    } else {
        return {static_cast<float>(plane[window])};
    }
}

template <typename T, bool kPool>
__device__ void store(const Window<kPool>& v, T* __restrict__ plane, int window, int width) {
    if constexpr (kPool) {
        T* first = plane + corner(window, width);
        *reinterpret_cast<Pair<T>*>(first) = {static_cast<T>(v.pixels[0]), static_cast<T>(v.pixels[1])};
        *reinterpret_cast<Pair<T>*>(first + width) = {static_cast<T>(v.pixels[2]), static_cast<T>(v.pixels[3])};
    } else {
        plane[window] = static_cast<T>(v.pixels[0]);
    }
}

// Every thread of the team gets the sum, added up in the same order each time.
template <int kTeam>
__device__ float team_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    if constexpr (kTeam > 32) {
        __shared__ float warps[kTeam / 32];
        __syncthreads();  // the sum before this one has been read
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0;
        for (int i = 0; i < kTeam / 32; ++i) value += warps[i];
    }
    return value;
}

template <int kTeam>
__device__ int64_t team_plane() {
    return static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
}

template <typename T, bool kPool, int kTeam>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                   T* __restrict__ out, float* __restrict__ mean_out, float* __restrict__ rstd_out, Sizes sizes,
                   float eps) {
    constexpr int kPixels = Window<kPool>::kPixels;
    const int64_t plane = team_plane<kTeam>();
    if (plane >= sizes.planes) return;  // the whole team: a block of several warps always has a plane
    const int rank = threadIdx.x % kTeam, channel = plane % sizes.channels;
    const float count = static_cast<float>(sizes.windows) * kPixels;
    x += plane * sizes.windows * kPixels;
    out += plane * sizes.windows;

    float sum = 0;
    for (int i = rank; i < sizes.windows; i += kTeam) {
        const Window<kPool> v = load<T, kPool>(x, i, sizes.width);
        for (float pixel : v.pixels) sum += pixel;
    }
    const float mean = team_sum<kTeam>(sum) / count;
    sum = 0;
    for (int i = rank; i < sizes.windows; i += kTeam) {
        const Window<kPool> v = load<T, kPool>(x, i, sizes.width);
        for (float pixel : v.pixels) sum += (pixel - mean) * (pixel - mean);
    }
    const float rstd = 1 / sqrtf(team_sum<kTeam>(sum) / count + eps);
    if (rank == 0) {
        mean_out[plane] = mean;
        rstd_out[plane] = rstd;
    }
    const float scale = rstd * static_cast<float>(weight[channel]), shift = static_cast<float>(bias[channel]);
    for (int i = rank; i < sizes.windows; i += kTeam) {
        const Window<kPool> v = load<T, kPool>(x, i, sizes.width);
        float pooled = 0;
        for (float pixel : v.pixels) {
            const float y = (pixel - mean) * scale + shift;
            pooled += y < 0 ? 0 : y;  // NaN stays, as in torch
        }
        out[i] = static_cast<T>(pooled / kPixels);
    }
}

template <typename T, bool kPool, int kTeam>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                    const T* __restrict__ bias, const float* __restrict__ mean_in, const float* __restrict__ rstd_in,
                    float* __restrict__ sums, T* __restrict__ grad_x, Sizes sizes) {
    constexpr int kPixels = Window<kPool>::kPixels;
    const int64_t plane = team_plane<kTeam>();
    if (plane >= sizes.planes) return;
    const int rank = threadIdx.x % kTeam, channel = plane % sizes.channels;
    x += plane * sizes.windows * kPixels;
    grad_x += plane * sizes.windows * kPixels;
    grad += plane * sizes.windows;
    const float mean = mean_in[plane], rstd = rstd_in[plane];
    const float scale = rstd * static_cast<float>(weight[channel]), shift = static_cast<float>(bias[channel]);

    float sum = 0, product = 0;  // of the cotangents behind the ReLU, and of these with the centred pixels
    for (int i = rank; i < sizes.windows; i += kTeam) {
        const Window<kPool> v = load<T, kPool>(x, i, sizes.width);
        const float share = static_cast<float>(grad[i]) / kPixels;
        for (float pixel : v.pixels) {
            const float g = (pixel - mean) * scale + shift <= 0 ? 0 : share;
            sum += g;
            product += g * (pixel - mean);
        }
    }
    sum = team_sum<kTeam>(sum);
    product = team_sum<kTeam>(product) * rstd;
    if (rank == 0) {
        sums[plane] = product;
        sums[sizes.planes + plane] = sum;
    }
    const float count = static_cast<float>(sizes.windows) * kPixels;
    const float average = sum / count, slope = rstd * product / count;
    for (int i = rank; i < sizes.windows; i += kTeam) {
        Window<kPool> v = load<T, kPool>(x, i, sizes.width);
        const float share = static_cast<float>(grad[i]) / kPixels;
        for (float& pixel : v.pixels) {
            const float g = (pixel - mean) * scale + shift <= 0 ? 0 : share;
            pixel = scale * (g - average - slope * (pixel - mean));
        }
        store<T, kPool>(v, grad_x, i, sizes.width);
    }
}

// A warp a channel adds up its planes over the images.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    affine_kernel(const float* __restrict__ sums, T* __restrict__ grad_weight, T* __restrict__ grad_bias,
                  int64_t planes, int channels) {
    const int channel = team_plane<32>(), rank = threadIdx.x % 32;
    if (channel >= channels) return;
    float to_weight = 0, to_bias = 0;
    for (int64_t plane = channel + static_cast<int64_t>(rank) * channels; plane < planes; plane += 32 * channels) {
        to_weight += sums[plane];
        to_bias += sums[planes + plane];
    }
    to_weight = team_sum<32>(to_weight);
    to_bias = team_sum<32>(to_bias);
    if (rank == 0) {
        grad_weight[channel] = static_cast<T>(to_weight);
        grad_bias[channel] = static_cast<T>(to_bias);
    }
}

template <typename T>
struct Type {
    using type = T;
};

template <typename Launch>
void dispatch(int dtype, bool pool, bool is_small, Launch launch) {
    const auto by_team = [&](auto type, auto is_pooled) {
        is_small ? launch(type, is_pooled, std::integral_constant<int, 32>())
                 : launch(type, is_pooled, std::integral_constant<int, kThreads>());
    };
    const auto by_pool = [&](auto type) {
        pool ? by_team(type, std::true_type()) : by_team(type, std::false_type());
    };
    switch (dtype) {
        case 0: return by_pool(Type<float>());
        case 1: return by_pool(Type<__nv_bfloat16>());
        case 2: return by_pool(Type<__half>());
    }
}

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

unsigned blocks_for(int64_t teams, int team) {
    const int64_t per_block = kThreads / team;
    return static_cast<unsigned>((teams + per_block - 1) / per_block);
}

}  // namespace

void instance_norm_relu_pool_fwd_cuda(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, uintptr_t mean,
                                      uintptr_t rstd, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                      double eps, bool pool, int dtype, uintptr_t stream) {
    const Sizes sizes{batch * channels, static_cast<int>(channels), static_cast<int>(width),
                      static_cast<int>(height * width / (pool ? 4 : 1))};
    if (sizes.planes == 0) return;
    dispatch(dtype, pool, height * width <= kWarpPixels, [&](auto type, auto is_pooled, auto team) {
        using T = typename decltype(type)::type;
        constexpr bool kPool = decltype(is_pooled)::value;
        constexpr int kTeam = decltype(team)::value;
        forward_kernel<T, kPool, kTeam>
            <<<blocks_for(sizes.planes, kTeam), kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
                pointer<const T>(x), pointer<const T>(weight), pointer<const T>(bias), pointer<T>(out),
                pointer<float>(mean), pointer<float>(rstd), sizes, static_cast<float>(eps));
    });
    check_launch("instance_norm_relu_pool");
}

void instance_norm_relu_pool_bwd_cuda(uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
                                      uintptr_t rstd, uintptr_t sums, uintptr_t grad_x, uintptr_t grad_weight,
                                      uintptr_t grad_bias, int64_t batch, int64_t channels, int64_t height,
                                      int64_t width, bool pool, int dtype, uintptr_t stream) {
    const Sizes sizes{batch * channels, static_cast<int>(channels), static_cast<int>(width),
                      static_cast<int>(height * width / (pool ? 4 : 1))};
    const auto queue = reinterpret_cast<cudaStream_t>(stream);
    dispatch(dtype, pool, height * width <= kWarpPixels, [&](auto type, auto is_pooled, auto team) {
        using T = typename decltype(type)::type;
        constexpr bool kPool = decltype(is_pooled)::value;
        constexpr int kTeam = decltype(team)::value;
        if (sizes.planes > 0) {
            backward_kernel<T, kPool, kTeam><<<blocks_for(sizes.planes, kTeam), kThreads, 0, queue>>>(
                pointer<const T>(grad), pointer<const T>(x), pointer<const T>(weight), pointer<const T>(bias),
                pointer<const float>(mean), pointer<const float>(rstd), pointer<float>(sums), pointer<T>(grad_x),
                sizes);
        }
        affine_kernel<T><<<blocks_for(channels, 32), kThreads, 0, queue>>>(
            pointer<const float>(sums), pointer<T>(grad_weight), pointer<T>(grad_bias), sizes.planes, sizes.channels);
    });
    check_launch("instance_norm_relu_pool_bwd");
}

}  // namespace ld3m
