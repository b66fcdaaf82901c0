// Dropout: the bits of the other backends. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011);
// block number `counter` under key `seed` gives four words, which decide elements 4i to 4i + 3. ELEMENT: element type.
#include "scalar.cuh"

using T = ELEMENT;

struct Form {
  u64 count;
  u64 threshold;  // words from here on keep their element
  double scale;   // of what is kept
};

struct Words {
  u32 word[4];
};
DEVICE Words philox(u64 number, u64 seed) {
  u32 c0 = u32(number), c1 = u32(number >> 32), c2 = 0, c3 = 0, k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u64 p0 = u64(c0) * 0xD2511F53u, p1 = u64(c2) * 0xCD9E8D57u;
    c0 = u32(p1 >> 32) ^ c1 ^ k0;
    c1 = u32(p1);
    c2 = u32(p0 >> 32) ^ c3 ^ k1;
    c3 = u32(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// state: (seed, counter).
extern "C" __global__ void __launch_bounds__(256) dropout(T* y, u8* mask, const T* x, const u64* state, const Form form) {
  u64 block = global_thread();
  u64 index = block * 4;
  if (index >= form.count) return;
  Words words = philox(state[1] + block, state[0]);
  Wide<T> scale = Wide<T>(form.scale);
  if (LANES == 4 && index + 4 <= form.count) {
    Vector<T, LANES> values = load<LANES>(x + index);
    Vector<u8, LANES> kept;
#pragma unroll
    for (int i = 0; i < LANES; i++) {
      kept.at[i] = words.word[i] >= form.threshold;
      values.at[i] = narrow<T>(widen(values.at[i]) * (Wide<T>(kept.at[i]) * scale));
    }
    store<LANES>(y + index, values);
    store<LANES>(mask + index, kept);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (index + i >= form.count) break;
    u8 kept = words.word[i] >= form.threshold;
    mask[index + i] = kept;
    y[index + i] = narrow<T>(widen(x[index + i]) * (Wide<T>(kept) * scale));
  }
}

// After all of them have read it: the counter moves past the blocks that were used.
extern "C" __global__ void __launch_bounds__(32) move_counter(u64* state, const Form form) {
  if (global_thread() == 0) state[1] += (form.count + 3) / 4;
}

extern "C" __global__ void __launch_bounds__(256) dropout_grad(T* out, const T* g, const u8* mask, const Form form) {
  u64 index = global_thread() * LANES;
  Wide<T> scale = Wide<T>(form.scale);
  if (index + LANES <= form.count) {
    Vector<T, LANES> values = load<LANES>(g + index);
    Vector<u8, LANES> kept = load<LANES>(mask + index);
#pragma unroll
    for (int i = 0; i < LANES; i++) values.at[i] = narrow<T>(widen(values.at[i]) * (Wide<T>(kept.at[i]) * scale));
    store<LANES>(out + index, values);
    return;
  }
  for (; index < form.count; index++) out[index] = narrow<T>(widen(g[index]) * (Wide<T>(mask[index]) * scale));
}
