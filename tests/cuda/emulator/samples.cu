// Small kernels for the tests of the emulator itself: what works, and mistakes that it must find.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T part[32];
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
#ifndef MISSING_BARRIER
  __syncthreads();
#endif
  T sum = 0;
  for (int i = 0; i < blockDim.x / 32; i++) sum += part[i];
  return sum;
}

extern "C" __global__ void row_sum(const float* x, float* y, int columns) {
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += x[blockIdx.x * columns + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

extern "C" __global__ void histogram(const int* x, int* counts, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&counts[x[i]], 1);
}

extern "C" __global__ void warp_functions(unsigned* y) {
  int lane = threadIdx.x % 32;
  unsigned odd = __ballot_sync(~0u, lane & 1);
  int up = __shfl_up_sync(~0u, lane, 3), down = __shfl_down_sync(~0u, lane, 3), one = __shfl_sync(~0u, lane, 5, 8);
  int sum = 0;
  if (lane < 8) sum = __reduce_add_sync(0xffu, lane);  // two groups of lanes at once
  else sum = __reduce_add_sync(0xffffff00u, lane);
  y[threadIdx.x * 6] = odd, y[threadIdx.x * 6 + 1] = up, y[threadIdx.x * 6 + 2] = down, y[threadIdx.x * 6 + 3] = one;
  y[threadIdx.x * 6 + 4] = sum, y[threadIdx.x * 6 + 5] = __syncthreads_count(lane < 3);
}

extern "C" __global__ void outside_of_the_mask(int* y) { __syncwarp(threadIdx.x % 32 < 8 ? 0xffu : 0xfu); }
extern "C" __global__ void forever_apart(int* y) {
  if (threadIdx.x < 64) emulator::barrier(1, 128, true);
  else emulator::barrier(2, 128, true);
}
extern "C" __global__ void divergent(int* y) {
  if (threadIdx.x % 32 < 16) __syncwarp();
  else y[threadIdx.x] = __shfl_sync(~0u, 1, 0);
}
extern "C" __global__ void beyond_shared(float* y) {
  float* shared = reinterpret_cast<float*>(emulator::dynamic_shared());
  shared[threadIdx.x] = y[threadIdx.x];
}
extern "C" __global__ void beyond_global(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x + n]; }
extern "C" __global__ void beyond_everything(int* y) { *reinterpret_cast<volatile int*>(8) = 1; }
