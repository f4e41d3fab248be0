#include "device.h"

#include <stdexcept>
#include <string>

namespace ld3m {

int cuda_driver_version() {
    int version = 0;
    cudaDriverGetVersion(&version);
    return version;
}

int cuda_runtime_version() {
    int version = 0;
    cudaRuntimeGetVersion(&version);
    return version;
}

void check_launch(const char* op) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error) +
                                 "; LD3M_BACKEND=triton or eager does without the CUDA kernels");
    }
}

}  // namespace ld3m
