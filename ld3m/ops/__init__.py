"""Operations with kernels, one a file: the eager reference, the checks, the dispatch and the gradient."""
