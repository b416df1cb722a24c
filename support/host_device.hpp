/// Marks functions that the host compiler and nvcc both compile, so that a formula exists once.
#pragma once

#if defined(__CUDACC__)
#define MOE_HD __host__ __device__
#else
#define MOE_HD
#endif
