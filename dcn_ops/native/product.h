// Products of matrices: a register kernel, and the packing of its operands.
//
// c[rows, columns] (+)= a[rows, depth] * b[depth, columns]. The kernel keeps a block of c in registers, ROWS x 2
// vectors, and reads b in panels of that width.

#pragma once

#include "problem.h"
#include "vector.h"

#if defined(__AVX512F__)
constexpr int ROWS = 12;  // 24 of 32 registers
#elif defined(__AVX__)
constexpr int ROWS = 6;  // 12 of 16
#else
constexpr int ROWS = 8;  // 16 of 32
#endif

// How the kernel walks along the depth: `inner` steps of one, `outer` times; `jump` is what lies between the starts
// of two runs in a.
struct Depth {
  int64_t outer, inner, jump;

  int64_t size() const { return outer * inner; }
};

// How operand a lies in memory: rows of whatever distance, or packed, where a block's rows are beside each other and
// `distance` is that between two steps of the depth.
enum class Rows { APART, PACKED };

template <int L, int M, int V, Rows LAYOUT>
void product_block(Depth depth, const float* a, int64_t distance, const float* b, int64_t b_distance, float* c,
                   int64_t c_distance, int64_t last, bool add) {
  const int64_t row = LAYOUT == Rows::PACKED ? 1 : distance, step = LAYOUT == Rows::PACKED ? distance : 1;
  Floats<L> total[M][V];
#pragma GCC unroll 12
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) total[i][v] = zeros<L>();
  // A pointer for every three rows: more distances than fit in registers would be fetched again in every step.
  constexpr int POINTERS = (M + 2) / 3;
  const float* rows[POINTERS];
  for (int64_t run = 0; run < depth.outer; run++, a += depth.jump) {
#pragma GCC unroll 4
    for (int i = 0; i < POINTERS; i++) rows[i] = a + 3 * i * row;
    for (int64_t k = 0; k < depth.inner; k++, b += b_distance) {
      Floats<L> of_b[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) of_b[v] = load<L>(b + v * L);
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) {
        const Floats<L> of_a = broadcast<L>(rows[i / 3][i % 3 * row + k * step]);
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) total[i][v] = multiply_add<L>(of_a, of_b[v], total[i][v]);
      }
    }
  }
  // Constant indices into `total`, or it would lie in memory.
#pragma GCC unroll 12
  for (int i = 0; i < M; i++, c += c_distance)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float* to = c + v * L;
      if (v == V - 1 && last < L)
        store_first<L>(to, add ? load_first<L>(to, last) + total[i][v] : total[i][v], last);
      else
        store<L>(to, add ? load<L>(to) + total[i][v] : total[i][v]);
    }
}

// One panel of b, all rows of a. Packed, the blocks of a follow each other.
template <int L, int V, Rows LAYOUT>
void product_panel(int64_t rows, Depth depth, const float* a, int64_t distance, const float* b, int64_t b_distance,
                   float* c, int64_t c_distance, int64_t last, bool add) {
#define BLOCK(M)                                                                                                  \
  {                                                                                                               \
    const int64_t a_distance = LAYOUT == Rows::PACKED ? M : distance;                                             \
    product_block<L, M, V, LAYOUT>(depth, a, a_distance, b, b_distance, c, c_distance, last, add);                \
    a += M * (LAYOUT == Rows::PACKED ? depth.size() : distance);                                                  \
    c += M * c_distance;                                                                                          \
    rows -= M;                                                                                                    \
  }
  while (rows >= ROWS) BLOCK(ROWS)
  if (ROWS > 8 && rows >= 8) BLOCK(8)
  if (rows >= 4) BLOCK(4)
  if (rows >= 2) BLOCK(2)
  if (rows >= 1) BLOCK(1)
#undef BLOCK
}

// How a matrix of so many columns is cut: registers of `lanes`, panels of `width`, one or two registers. Columns that
// would fill half of the last register at most are computed in halves: two of those multiply as much as a whole.
struct Cut {
  int64_t lanes, width;

  explicit Cut(int64_t columns) {
    const bool half = LANES > 4 && columns % LANES > 0 && columns % LANES <= LANES / 2;
    lanes = half ? LANES / 2 : LANES;
    width = columns <= lanes ? lanes : 2 * lanes;
  }
  int64_t padded(int64_t columns) const { return divide_up(columns, width) * width; }
};

// Where b lies: `panel` is the distance between the starts of two panels, `row` that of two rows in a panel.
struct Panels {
  const float* start;
  int64_t panel, row;
};

template <int L, Rows LAYOUT>
void product_of(int64_t rows, int64_t columns, Depth depth, const float* a, int64_t distance, const Panels& b,
                float* c, int64_t c_distance, bool add) {
  const float* from = b.start;
  for (int64_t j = 0; j < columns; j += 2 * L, from += b.panel, c += 2 * L) {
    const int64_t left = columns - j;
    if (left <= L)
      product_panel<L, 1, LAYOUT>(rows, depth, a, distance, from, b.row, c, c_distance, left, add);
    else
      product_panel<L, 2, LAYOUT>(rows, depth, a, distance, from, b.row, c, c_distance, at_most(left - L, L), add);
  }
}

template <Rows LAYOUT>
void product_part(const Cut& cut, int64_t rows, int64_t columns, Depth depth, const float* a, int64_t distance,
                  const Panels& b, float* c, int64_t c_distance, bool add) {
  if (cut.lanes == LANES)
    product_of<LANES, LAYOUT>(rows, columns, depth, a, distance, b, c, c_distance, add);
  else
    product_of<at_least(LANES / 2, 4), LAYOUT>(rows, columns, depth, a, distance, b, c, c_distance, add);
}

// Sums of a few hundred terms, which then are added up: that rounds less than one long sum, and a panel of b stays in
// the first cache.
constexpr int64_t MOST_TERMS = 256;

template <Rows LAYOUT>
void product(const Cut& cut, int64_t rows, int64_t columns, Depth depth, const float* a, int64_t distance,
             const Panels& b, float* c, int64_t c_distance, bool add) {
  if constexpr (LAYOUT == Rows::PACKED) {
    product_part<LAYOUT>(cut, rows, columns, depth, a, distance, b, c, c_distance, add);
    return;
  }
  const int64_t runs = at_least(1, MOST_TERMS / depth.inner), terms = divide_up(depth.inner, divide_up(depth.inner, MOST_TERMS));
  for (int64_t run = 0; run < depth.outer; run += runs)
    for (int64_t k = 0; k < depth.inner; k += terms, add = true) {
      const Depth part = {at_most(runs, depth.outer - run), at_most(terms, depth.inner - k), depth.jump};
      const Panels of_b = {b.start + (run * depth.inner + k) * b.row, b.panel, b.row};
      product_part<LAYOUT>(cut, rows, columns, part, a + run * depth.jump + k, distance, of_b, c, c_distance, add);
    }
}

// a[depth, rows], of rows of `distance`, transposed and packed: blocks of as many rows as `product_panel` takes.
inline void pack_rows(int64_t rows, int64_t depth, const float* a, int64_t distance, float* packed) {
  for (int64_t i = 0; i < rows;) {
    const int64_t left = rows - i;
    const int64_t block = left >= ROWS ? ROWS : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (int64_t k = 0; k < depth; k++, packed += block)
      for (int64_t j = 0; j < block; j++) packed[j] = a[k * distance + i + j];
    i += block;
  }
}
