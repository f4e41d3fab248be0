#include "group_select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "multiversion.h"

namespace ld3m {
namespace {

constexpr int kLanes = 16;  // counters side by side; each makes 4 numbers
constexpr uint32_t kFirst = 0xD2511F53u, kSecond = 0xCD9E8D57u;  // multipliers of Philox 4x32
constexpr int kTile = 4 * kLanes;

struct Problem {
    int64_t blocks, ipc;               // blocks: counters a member, a multiple of kLanes
    std::vector<float> variance, used;  // (4, blocks), padded by zeros; `used` is 1 at every coordinate
    uint32_t seed_low, seed_high;
    double mean_weight, std_weight, skew_weight;
};

LD3M_INLINE float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

LD3M_INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// Natural logarithm of a normal number: the exponent, and Cephes' polynomial for the mantissa in [sqrt(1/2), sqrt(2)).
LD3M_INLINE float logarithm(float value) {
    const uint32_t shifted = to_bits(value) - 0x3f3504f3u;  // the bits of sqrt(1/2)
    const float exponent = float(int32_t(shifted) >> 23);
    const float x = from_bits((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    float series = 7.0376836292e-2f;
    series = series * x - 1.1514610310e-1f;
    series = series * x + 1.1676998740e-1f;
    series = series * x - 1.2420140846e-1f;
    series = series * x + 1.4249322787e-1f;
    series = series * x - 1.6668057665e-1f;
    series = series * x + 2.0000714765e-1f;
    series = series * x - 2.4999993993e-1f;
    series = series * x + 3.3333331174e-1f;
    return exponent * 0.69314718f + (x + x * x * (series * x - 0.5f));
}

// Box-Muller: two words to two normal numbers; the radius ends at sqrt(64 ln 2) = 6.66.
LD3M_INLINE void box_muller(uint32_t x, uint32_t y, float* cosine, float* sine) {
    const float uniform = float(int32_t(x >> 1)) * 0x1p-31f + 0x1p-32f;  // (0, 1]
    const float radius = __builtin_sqrtf(-2.0f * logarithm(uniform));
    const uint32_t quadrant = (y + 0x20000000u) >> 30;  // the angle is 2 pi y / 2^32, the rest within pi / 4 of a quadrant
    const float rest = float(int32_t(y - (quadrant << 30))) * 1.4629181e-9f;  // pi / 2^31
    const float r2 = rest * rest;
    const float s = rest + rest * r2 * (-1.6666654611e-1f + r2 * (8.3321608736e-3f + r2 * -1.9515295891e-4f));
    const float c = 1.0f - 0.5f * r2 + r2 * r2 * (4.1666645683e-2f + r2 * (-1.3887316255e-3f + r2 * 2.4433157118e-5f));
    const uint32_t swap = (to_bits(s) ^ to_bits(c)) & -(quadrant & 1);  // in odd quadrants
    const uint32_t of_cosine = ((quadrant + 1) & 2) << 30, of_sine = (quadrant & 2) << 30;  // sign bits
    *cosine = radius * from_bits(to_bits(c) ^ swap ^ of_cosine);
    *sine = radius * from_bits(to_bits(s) ^ swap ^ of_sine);
}

LD3M_INLINE uint32_t high_product(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

// Salmon et al. 2011: ten rounds of two 32 x 32 -> 64 multiplications.
LD3M_INLINE void philox(uint32_t (&word)[4], uint32_t key_low, uint32_t key_high) {
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const uint32_t first = word[0], second = word[2];
        word[0] = high_product(kSecond, second) ^ word[1] ^ key_low;
        word[2] = high_product(kFirst, first) ^ word[3] ^ key_high;
        word[1] = kSecond * second;
        word[3] = kFirst * first;
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}

// Fill `tile` (4, kLanes) with a member's numbers of the counters from `block`.
LD3M_INLINE void draw(const Problem& p, uint32_t block, uint32_t member, uint64_t group, float* __restrict__ tile) {
    uint32_t words[4][kLanes];
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        uint32_t word[4] = {block + lane, member, uint32_t(group), uint32_t(group >> 32)};
        philox(word, p.seed_low, p.seed_high);
        for (int i = 0; i < 4; ++i) words[i][lane] = word[i];
    }
    for (int i = 0; i < 4; i += 2) {
        for (int lane = 0; lane < kLanes; ++lane) {
            box_muller(words[i][lane], words[i + 1][lane], tile + i * kLanes + lane, tile + (i + 1) * kLanes + lane);
        }
    }
}

// `tiles` (ipc, kTile) and `cubes` (ipc, kLanes) are room to work in. A coordinate at which all members are equal has no skewness.
LD3M_MULTIVERSION
float score(const Problem& p, uint64_t group, float* __restrict__ tiles, float* __restrict__ cubes) {
    float of_mean[kLanes] = {}, of_std[kLanes] = {}, mean[kTile], scale[kTile];
    std::fill(cubes, cubes + p.ipc * kLanes, 0.0f);
    for (int64_t block = 0; block < p.blocks; block += kLanes) {
        for (int64_t member = 0; member < p.ipc; ++member) draw(p, block, member, group, tiles + member * kTile);
        std::fill(mean, mean + kTile, 0.0f);
        for (int64_t member = 0; member < p.ipc; ++member) {
            for (int i = 0; i < kTile; ++i) mean[i] += tiles[member * kTile + i];
        }
        for (int i = 0; i < kTile; ++i) mean[i] *= 1.0f / float(p.ipc);
        for (int row = 0; row < 4; ++row) {
            const float* variance = p.variance.data() + row * p.blocks + block;
            for (int i = 0; i < kLanes; ++i) {
                of_mean[i] += variance[i] * mean[row * kLanes + i] * mean[row * kLanes + i];
            }
        }
        if (p.std_weight == 0 && p.skew_weight == 0) continue;
        std::fill(scale, scale + kTile, 0.0f);
        const float by = 1.0f / float(std::max<int64_t>(p.ipc - 1, 1));
        for (int64_t member = 0; member < p.ipc; ++member) {
            for (int i = 0; i < kTile; ++i) {
                const float deviation = tiles[member * kTile + i] - mean[i];
                scale[i] += deviation * deviation;
            }
        }
        for (int row = 0; row < 4; ++row) {
            const float* variance = p.variance.data() + row * p.blocks + block;
            const float* used = p.used.data() + row * p.blocks + block;
            float* of_row = scale + row * kLanes;
            for (int i = 0; i < kLanes; ++i) {
                const float deviation = __builtin_sqrtf(of_row[i] * by);
                of_std[i] += variance[i] * (deviation - 1.0f) * (deviation - 1.0f);
                of_row[i] = deviation > 0.0f ? used[i] / (deviation * deviation * deviation) : 0.0f;
            }
        }
        if (p.skew_weight == 0) continue;
        for (int64_t member = 0; member < p.ipc; ++member) {
            float* sum = cubes + member * kLanes;
            for (int row = 0; row < 4; ++row) {
                for (int i = 0; i < kLanes; ++i) {
                    const float deviation = tiles[member * kTile + row * kLanes + i] - mean[row * kLanes + i];
                    sum[i] += deviation * deviation * deviation * scale[row * kLanes + i];
                }
            }
        }
    }
    double mean_square = 0, std_square = 0, skew_square = 0;
    for (int i = 0; i < kLanes; ++i) {
        mean_square += of_mean[i];
        std_square += of_std[i];
    }
    for (int64_t member = 0; member < p.ipc; ++member) {
        double sum = 0;
        for (int i = 0; i < kLanes; ++i) sum += cubes[member * kLanes + i];
        skew_square += sum * sum;
    }
    return float(p.mean_weight * std::sqrt(mean_square) + p.std_weight * std::sqrt(std_square) +
                 p.skew_weight * std::sqrt(skew_square));
}

}  // namespace

void group_scores(uintptr_t std, uintptr_t scores, int64_t dim, int64_t ipc, int64_t first, int64_t num_groups,
                  uint64_t seed, double mean_weight, double std_weight, double skew_weight, int threads) {
    const float* from = reinterpret_cast<const float*>(std);
    float* to = reinterpret_cast<float*>(scores);
    const int64_t used_blocks = (dim + 3) / 4, blocks = (used_blocks + kLanes - 1) / kLanes * kLanes;
    Problem p{blocks, ipc, std::vector<float>(4 * blocks), std::vector<float>(4 * blocks), uint32_t(seed),
              uint32_t(seed >> 32), mean_weight, std_weight, skew_weight};
    for (int64_t i = 0; i < dim; ++i) {
        const int64_t at = i / used_blocks * blocks + i % used_blocks;
        p.variance[at] = from[i] * from[i];
        p.used[at] = 1.0f;
    }
#pragma omp parallel num_threads(threads) if (threads > 1 && num_groups > 1)
    {
        std::vector<float> tiles(ipc * kTile), cubes(ipc * kLanes);
#pragma omp for schedule(dynamic, 8)
        for (int64_t k = 0; k < num_groups; ++k) to[k] = score(p, first + k, tiles.data(), cubes.data());
    }
}

}  // namespace ld3m
