// Samples: from positions to the neighbours that are read and their weights, and back to the gradients of positions
// and mask. Eight at a time.

#pragma once

#include "problem.h"
#include "vector.h"

// The four neighbours of a sample: (top, left), (top, right), (bottom, left), (bottom, right). One beyond the border
// is its neighbour within, with weight 0: that one is read anyway, so that a pixel that is not finite reaches no sample
// that does not touch it. A sample that lies outside has `index[0] < 0`: it touches no pixel.
struct alignas(32) Sample {
  int32_t index[4];  // of the first channel, from the start of the image
  float weight[4];   // the mask multiplied in

  bool is_outside() const { return index[0] < 0; }
  // What is sampled outside: 0 times the mask, which may not be finite.
  float value_outside() const { return weight[0]; }
};

// Into registers. A later store of floats may change the record, for all the compiler knows, but not a copy.
INLINE void copy_sample(const Sample& sample, int64_t index[4], Floats<LANES> weight[4]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    index[j] = sample.index[j];
    weight[j] = broadcast<LANES>(sample.weight[j]);
  }
}

constexpr int AT_A_TIME = 8;  // a record has eight words
typedef Floats<AT_A_TIME> Eight;
typedef Ints<AT_A_TIME> EightInts;

// What gradients need of a sample beside its record.
struct Distances {
  Eight below, beside;  // from the top left neighbour
  EightInts exists;     // a bit for each neighbour
};

class Image {
 public:
  explicit Image(const Sampling& a)
      : height_(broadcast<AT_A_TIME>((float)a.height)), width_(broadcast<AT_A_TIME>((float)a.width)),
        last_row_(EightInts{} + (int32_t)(a.height - 1)), last_column_(EightInts{} + (int32_t)(a.width - 1)),
        row_size_((int32_t)(a.width * a.channels)), pixel_size_((int32_t)a.channels) {}

  // Write the records of the samples at the positions y, x.
  inline __attribute__((always_inline)) Distances locate(Eight y, Eight x, Eight mask, Sample* to) const {
    constexpr int L = AT_A_TIME;
    const Eight one = broadcast<L>(1);
    const EightInts none = {};
    // False for what is not a number.
    const EightInts inside = (y >= -one) & (y < height_) & (x >= -one) & (x < width_);
    y = keep<L>(y, inside);
    x = keep<L>(x, inside);
    const EightInts top = floor(y), left = floor(x);
    const Eight below = y - __builtin_convertvector(top, Eight), beside = x - __builtin_convertvector(left, Eight);
    const EightInts has_top = inside & (top >= none), has_bottom = inside & (top < last_row_);
    const EightInts has_left = inside & (left >= none), has_right = inside & (left < last_column_);
    const Eight weight_top = keep<L>(one - below, has_top) * mask, weight_bottom = keep<L>(below, has_bottom) * mask;
    const Eight weight_left = keep<L>(one - beside, has_left), weight_right = keep<L>(beside, has_right);
    // The row -1 is read at 0, the row H at H - 1, and columns likewise.
    const EightInts row_top = (top & (top >= none)) * row_size_, row_bottom = (top - (top < last_row_)) * row_size_;
    const EightInts column_left = (left & (left >= none)) * pixel_size_;
    const EightInts column_right = (left - (left < last_column_)) * pixel_size_;
    Eight record[L] = {
        (Eight)((row_top + column_left) | ~inside),
        (Eight)(row_top + column_right),
        (Eight)(row_bottom + column_left),
        (Eight)(row_bottom + column_right),
        weight_top * weight_left,
        weight_top * weight_right,
        weight_bottom * weight_left,
        weight_bottom * weight_right,
    };
    transpose(record);
    for (int j = 0; j < L; j++) store<L>((float*)(to + j), record[j]);
    const EightInts exists = ((has_top & has_left) & 1) | ((has_top & has_right) & 2) | ((has_bottom & has_left) & 4) |
                             ((has_bottom & has_right) & 8);
    return {below, beside, exists};
  }

 private:
  static inline __attribute__((always_inline)) EightInts floor(Eight value) {
    const EightInts towards_zero = __builtin_convertvector(value, EightInts);
    return towards_zero + (__builtin_convertvector(towards_zero, Eight) > value);  // true is -1
  }

  Eight height_, width_;
  EightInts last_row_, last_column_;
  int32_t row_size_, pixel_size_;
};

struct SampleGradients {
  Eight y, x, mask;
};

// Of eight samples, from the products of their neighbours with the gradient of what is sampled: `dots`, [8, 4].
INLINE SampleGradients sample_gradients(const float* dots, const Distances& at, Eight mask) {
  constexpr int L = AT_A_TIME;
  Eight dot[4];
  columns_of_four(dots, dot);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) dot[j] = keep<L>(dot[j], (at.exists & (1 << j)) != 0);
  const Eight top = dot[0] + at.beside * (dot[1] - dot[0]), bottom = dot[2] + at.beside * (dot[3] - dot[2]);
  const Eight left = dot[0] + at.below * (dot[2] - dot[0]), right = dot[1] + at.below * (dot[3] - dot[1]);
  const EightInts inside = at.exists != 0;  // no mask moves what lies outside
  return {keep<L>(mask * (bottom - top), inside), keep<L>(mask * (right - left), inside),
          top + at.below * (bottom - top)};
}
