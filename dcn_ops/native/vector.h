// Vectors of float32: the extensions of gcc and clang, so that one code serves AVX-512, AVX2, NEON and SSE.
//
// L is the number of lanes. LANES is what one register holds; where a vector is longer, the compiler takes several
// registers.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

template <int L>
struct VectorOf {
  typedef float Floats __attribute__((vector_size(4 * L)));
  typedef int32_t Ints __attribute__((vector_size(4 * L)));
};
template <int L>
using Floats = typename VectorOf<L>::Floats;
template <int L>
using Ints = typename VectorOf<L>::Ints;

template <int L>
INLINE Floats<L> zeros() {
  return Floats<L>{};
}

template <int L>
INLINE Floats<L> broadcast(float value) {
  return value - Floats<L>{};  // not a sum: -0 + 0 is 0
}

template <int L>
INLINE Floats<L> load(const float* from) {
  Floats<L> vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <int L>
INLINE void store(float* to, Floats<L> vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// The first `count` lanes, 0 < count < L; the others are 0, and the memory behind them is not touched.

template <int L>
INLINE Floats<L> load_first(const float* from, int64_t count) {
  Floats<L> vector = {};
  for (int64_t i = 0; i < count; i++) vector[i] = from[i];
  return vector;
}

template <int L>
INLINE void store_first(float* to, Floats<L> vector, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = vector[i];
}

#if defined(__AVX512F__)

template <>
INLINE_MEMBER Floats<16> load_first<16>(const float* from, int64_t count) {
  return (Floats<16>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}

template <>
INLINE_MEMBER void store_first<16>(float* to, Floats<16> vector, int64_t count) {
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)vector);
}

#endif

#if defined(__AVX__)

INLINE __m256i first_of_eight(int64_t count) {
  const Ints<8> lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (__m256i)(lane < (int32_t)count);
}

template <>
INLINE_MEMBER Floats<8> load_first<8>(const float* from, int64_t count) {
  return (Floats<8>)_mm256_maskload_ps(from, first_of_eight(count));
}

template <>
INLINE_MEMBER void store_first<8>(float* to, Floats<8> vector, int64_t count) {
  _mm256_maskstore_ps(to, first_of_eight(count), (__m256)vector);
}

#endif

// a * b + c, rounded once where the machine can. Compilers do that by themselves, but gcc not in every loop: then the
// results would depend on which loop computes a row.
template <int L>
INLINE Floats<L> multiply_add(Floats<L> a, Floats<L> b, Floats<L> c) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Floats<L>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
#if defined(__FMA__)
  if constexpr (L == 8) return (Floats<L>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (L == 4) return (Floats<L>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#endif
  return a * b + c;
}

// A whole vector where PARTIAL is false, else the first `count` lanes.

template <int L, bool PARTIAL>
INLINE Floats<L> load_up_to(const float* from, int64_t count) {
  if constexpr (PARTIAL) return load_first<L>(from, count);
  return load<L>(from);
}

template <int L, bool PARTIAL>
INLINE void store_up_to(float* to, Floats<L> vector, int64_t count) {
  if constexpr (PARTIAL)
    store_first<L>(to, vector, count);
  else
    store<L>(to, vector);
}

// Lanes of which the mask, of a comparison, is not set become 0.
template <int L>
INLINE Floats<L> keep(Floats<L> vector, Ints<L> mask) {
  return (Floats<L>)((Ints<L>)vector & mask);
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

// The sum of the lanes of each of four vectors.
template <int L>
INLINE Floats<4> sums(const Floats<L> vector[4]) {
  if constexpr (L > 4) {
    Floats<L / 2> folded[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      Floats<L / 2> halves[2];
      __builtin_memcpy(halves, vector + i, sizeof halves);
      folded[i] = halves[0] + halves[1];
    }
    return sums<L / 2>(folded);
  } else {
    const Floats<4>* v = vector;
    const Floats<4> first = SHUFFLE(v[0], v[1], 0, 4, 1, 5) + SHUFFLE(v[0], v[1], 2, 6, 3, 7);
    const Floats<4> second = SHUFFLE(v[2], v[3], 0, 4, 1, 5) + SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    return SHUFFLE(first, second, 0, 1, 4, 5) + SHUFFLE(first, second, 2, 3, 6, 7);
  }
}

// Rows become columns.
INLINE void transpose(Floats<8> row[8]) {
  Floats<8> pair[8], quad[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = SHUFFLE(row[i], row[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pair[i + 1] = SHUFFLE(row[i], row[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    quad[i] = SHUFFLE(pair[i], pair[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    quad[i + 1] = SHUFFLE(pair[i], pair[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    quad[i + 2] = SHUFFLE(pair[i + 1], pair[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    quad[i + 3] = SHUFFLE(pair[i + 1], pair[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; i++) {
    row[i] = SHUFFLE(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    row[i + 4] = SHUFFLE(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

INLINE Floats<8> joined(Floats<4> first, Floats<4> second) {
#if defined(__AVX__)  // gcc would join them in memory, and wait for both stores
  return (Floats<8>)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)first), (__m128)second, 1);
#else
  const Floats<4> halves[2] = {first, second};
  Floats<8> both;
  __builtin_memcpy(&both, halves, sizeof both);
  return both;
#endif
}

// The columns of a matrix [8, 4].
INLINE void columns_of_four(const float* rows, Floats<8> column[4]) {
  Floats<8> pair[4];  // row i, and row i + 4
  for (int i = 0; i < 4; i++) {
    pair[i] = joined(load<4>(rows + 4 * i), load<4>(rows + 4 * (i + 4)));
  }
  const Floats<8> first = SHUFFLE(pair[0], pair[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats<8> second = SHUFFLE(pair[0], pair[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const Floats<8> third = SHUFFLE(pair[2], pair[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats<8> fourth = SHUFFLE(pair[2], pair[3], 2, 10, 3, 11, 6, 14, 7, 15);
  column[0] = SHUFFLE(first, third, 0, 1, 8, 9, 4, 5, 12, 13);
  column[1] = SHUFFLE(first, third, 2, 3, 10, 11, 6, 7, 14, 15);
  column[2] = SHUFFLE(second, fourth, 0, 1, 8, 9, 4, 5, 12, 13);
  column[3] = SHUFFLE(second, fourth, 2, 3, 10, 11, 6, 7, 14, 15);
}

// Of eight pairs, the first and the second values.
INLINE void split_pairs(const float* pairs, Floats<8>& first, Floats<8>& second) {
  const Floats<8> a = load<8>(pairs), b = load<8>(pairs + 8);
  first = SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  second = SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}

INLINE void store_pairs(float* pairs, Floats<8> first, Floats<8> second) {
  store<8>(pairs, SHUFFLE(first, second, 0, 8, 1, 9, 2, 10, 3, 11));
  store<8>(pairs + 8, SHUFFLE(first, second, 4, 12, 5, 13, 6, 14, 7, 15));
}
