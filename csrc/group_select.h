// Scores of groups of normal numbers against zero mean and unit standard deviation, without ever holding a group.
//
// Number (member, coordinate) of a group is normal `row` of the counter (block, member, group's low and high word) of
// Philox 4x32-10 under `seed`, where coordinate = row * ceil(dim / 4) + block. std (dim) and scores (num_groups) are dense float32;
// the weights are what the norms of mean, std and cubes are multiplied by; the cubes are not made where theirs is 0.
#pragma once

#include <cstdint>

namespace ld3m {

void group_scores(uintptr_t std, uintptr_t scores, int64_t dim, int64_t ipc, int64_t first, int64_t num_groups,
                  uint64_t seed, double mean_weight, double std_weight, double skew_weight, int threads);

}  // namespace ld3m
