// What the CUDA parts share: versions, and launch errors as exceptions.
#pragma once

namespace ld3m {

int cuda_driver_version();   // 1000 * major + 10 * minor, 0 without a driver
int cuda_runtime_version();
void check_launch(const char* op);  // throws std::runtime_error when the launch before it failed

}  // namespace ld3m
