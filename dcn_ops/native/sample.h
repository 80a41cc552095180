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

// Eight samples, word by word: to write them takes no transposition. Whoever reads a sample often reads records faster.
struct alignas(32) EightSamples {
  int32_t index[4][AT_A_TIME];
  float weight[4][AT_A_TIME];
};

INLINE Sample sample_at(const EightSamples* samples, uint64_t number) {
  const EightSamples& eight = samples[number / AT_A_TIME];
  const uint64_t i = number % AT_A_TIME;
  return {{eight.index[0][i], eight.index[1][i], eight.index[2][i], eight.index[3][i]},
          {eight.weight[0][i], eight.weight[1][i], eight.weight[2][i], eight.weight[3][i]}};
}

// What gradients need of a sample beside its record.
struct Distances {
  Eight below, beside;  // from the top left neighbour
  EightInts exists;     // a bit for each neighbour
};

// Eight samples in registers.
struct Located {
  Eight words[8];  // of the records: the indices, then the weights
  Distances at;

  INLINE_MEMBER void write(Sample* to) const {
    Eight record[8];
    __builtin_memcpy(record, words, sizeof record);
    transpose(record);
    for (int i = 0; i < 8; i++) store<AT_A_TIME>((float*)(to + i), record[i]);
  }
  INLINE_MEMBER void write(EightSamples* to) const {
    for (int i = 0; i < 8; i++) store<AT_A_TIME>((float*)to + i * AT_A_TIME, words[i]);
  }
};

class Image {
 public:
  explicit Image(const Sampling& a)
      : height_(broadcast<AT_A_TIME>((float)a.height)), width_(broadcast<AT_A_TIME>((float)a.width)),
        last_row_(EightInts{} + (int32_t)(a.height - 1)), last_column_(EightInts{} + (int32_t)(a.width - 1)),
        row_size_((int32_t)(a.width * a.channels)), pixel_size_((int32_t)a.channels) {}

  // The samples at the positions y, x.
  INLINE_MEMBER Located locate(Eight y, Eight x, Eight mask) const {
    constexpr int L = AT_A_TIME;
    const Eight one = broadcast<L>(1);
    const EightInts none = {};
    // False for what is not a number.
    const EightInts inside = (y >= -one) & (y < height_) & (x >= -one) & (x < width_);
    y = keep<L>(y, inside);
    x = keep<L>(x, inside);
    const Eight floor_y = floor(y), floor_x = floor(x), below = y - floor_y, beside = x - floor_x;
    const EightInts top = __builtin_convertvector(floor_y, EightInts);
    const EightInts left = __builtin_convertvector(floor_x, EightInts);
    const EightInts has_top = inside & (top >= none), has_bottom = inside & (top < last_row_);
    const EightInts has_left = inside & (left >= none), has_right = inside & (left < last_column_);
    const Eight weight_top = keep<L>(one - below, has_top) * mask, weight_bottom = keep<L>(below, has_bottom) * mask;
    const Eight weight_left = keep<L>(one - beside, has_left), weight_right = keep<L>(beside, has_right);
    // The row -1 is read at 0, the row H at H - 1, and columns likewise.
    const EightInts first = (top & (top >= none)) * row_size_ + (left & (left >= none)) * pixel_size_;
    const EightInts down = row_size_ & (top >= none) & (top < last_row_);
    const EightInts aside = pixel_size_ & (left >= none) & (left < last_column_);
    const EightInts exists = ((has_top & has_left) & 1) | ((has_top & has_right) & 2) | ((has_bottom & has_left) & 4) |
                             ((has_bottom & has_right) & 8);
    return {{
                (Eight)(first | ~inside),
                (Eight)(first + aside),
                (Eight)(first + down),
                (Eight)(first + down + aside),
                weight_top * weight_left,
                weight_top * weight_right,
                weight_bottom * weight_left,
                weight_bottom * weight_right,
            },
            {below, beside, exists}};
  }

 private:
  static INLINE_MEMBER Eight floor(Eight value) {
#if defined(__AVX__)
    return (Eight)_mm256_floor_ps((__m256)value);
#else
    const EightInts towards_zero = __builtin_convertvector(value, EightInts);
    const EightInts below = towards_zero + (__builtin_convertvector(towards_zero, Eight) > value);  // true is -1
    return __builtin_convertvector(below, Eight);
#endif
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
