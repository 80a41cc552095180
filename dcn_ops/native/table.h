// The table of sampling locations: where each tap of some output pixels reads, and with which weights.

#pragma once

#include "parallel.h"
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

class Table {
 public:
  // For up to `pixels` output pixels and the taps of a block of `taps`.
  Table(const Problem& problem, Scratch& scratch, int64_t pixels, int64_t taps, bool gradients)
      : problem_(problem), taps_(taps) {
    const int64_t size = divide_up(pixels * problem.offset_groups * taps, L) * L;
    samples_ = scratch.array<Sample>(size);
    y_ = scratch.zeros<float>(size);
    x_ = scratch.zeros<float>(size);
    mask_ = scratch.array<float>(size);
    for (int64_t i = 0; i < size; i++) mask_[i] = 1;
    grid_y_ = scratch.array<float>(taps);
    grid_x_ = scratch.array<float>(taps);
    if (!gradients) return;
    dots_ = scratch.array<float>(4 * size);
    exists_ = scratch.array<int32_t>(size);
  }

  // Fill with the samples of output pixels `begin` to `end`, counted over all images, and taps `first` to
  // `first + taps`, at most as many of each as the constructor says.
  void fill(int64_t begin, int64_t end, int64_t first, int64_t taps) {
    first_ = first;
    taps_ = taps;
    begin_ = begin;
    count_ = (end - begin) * problem_.offset_groups * taps;
    for (int64_t tap = 0; tap < taps; tap++) {
      grid_y_[tap] = (float)((first + tap) / problem_.kernel_width * problem_.dilation_y);
      grid_x_[tap] = (float)((first + tap) % problem_.kernel_width * problem_.dilation_x);
    }
    locate(begin, end);
    if (dots_ == nullptr) {
      weigh<false>();
    } else {
      weigh<true>();
      std::memset(dots_, 0, 4 * count_ * sizeof(float));
    }
  }

  // Of the pixel, counted from the first, the offset group and the tap, counted from the first.
  int64_t number(int64_t pixel, int64_t group, int64_t tap) const {
    return (pixel * problem_.offset_groups + group) * taps_ + tap;
  }
  const Sample& operator[](int64_t number) const { return samples_[number]; }

  // Where the backward adds up, for each of the sample's neighbours, its product with the column's gradient.
  float* dots(int64_t number) { return dots_ + 4 * number; }

  // Write the gradients of offset and mask, which the dots give, for the pixels and taps of the table. The arrays
  // are [N, Ho, Wo, G*K*2] and [N, Ho, Wo, G*K]; either may be null.
  void write_gradients(float* grad_offset, float* grad_mask) const {
    const int64_t groups = problem_.offset_groups, all_taps = problem_.taps();
    for (int64_t i = 0, row = begin_ * groups; i < count_; i += taps_, row++) {
      const int64_t to = row * all_taps + first_;
      for (int64_t tap = 0; tap < taps_; tap++) write_gradient(i + tap, to + tap, grad_offset, grad_mask);
    }
  }

 private:
  static constexpr int L = 8;  // a record has eight words

  // The positions of the samples, in pixels of the input, and the mask.
  void locate(int64_t begin, int64_t end) {
    const Problem& a = problem_;
    const int64_t *s = a.offset_strides, *t = a.mask_strides;
    Pixel pixel = Pixel::at(a, begin);
    float *y = y_, *x = x_, *mask = mask_;
    for (int64_t i = begin; i < end; i++, pixel.advance(a)) {
      const float* offset = a.offset + pixel.image * s[0] + pixel.y * s[2] + pixel.x * s[3];
      const float base_y = (float)(pixel.y * a.stride_y - a.padding_y);
      const float base_x = (float)(pixel.x * a.stride_x - a.padding_x);
      for (int64_t group = 0; group < a.offset_groups; group++, y += taps_, x += taps_) {
        const float* from = offset + (group * a.taps() + first_) * 2 * s[1];
        if (s[1] == 1)
          add_grid(from, 1, base_y, base_x, y, x);
        else
          add_grid(from, s[1], base_y, base_x, y, x);
      }
      if (a.mask == nullptr) continue;
      const float* of_mask = a.mask + pixel.image * t[0] + pixel.y * t[2] + pixel.x * t[3];
      for (int64_t group = 0; group < a.offset_groups; group++, mask += taps_) {
        const float* from = of_mask + (group * a.taps() + first_) * t[1];
        for (int64_t tap = 0; tap < taps_; tap++) mask[tap] = from[tap * t[1]];
      }
    }
  }

  inline __attribute__((always_inline)) void add_grid(const float* __restrict offset, int64_t stride, float base_y,
                                                      float base_x, float* __restrict y, float* __restrict x) const {
    const float *__restrict grid_y = grid_y_, *__restrict grid_x = grid_x_;
    for (int64_t tap = 0; tap < taps_; tap++) {
      y[tap] = offset[2 * tap * stride] + (base_y + grid_y[tap]);
      x[tap] = offset[(2 * tap + 1) * stride] + (base_x + grid_x[tap]);
    }
  }

  // The neighbours and their weights, eight samples at a time, from the positions. For gradients keep which
  // neighbours exist, and in place of positions the distances from the top left neighbour.
  template <bool GRADIENTS>
  void weigh() {
    typedef Floats<L> F;
    typedef Ints<L> I;
    const F height = broadcast<L>((float)problem_.height), width = broadcast<L>((float)problem_.width);
    const F one = broadcast<L>(1);
    const I none = {}, last_row = none + (int32_t)(problem_.height - 1);
    const I last_column = none + (int32_t)(problem_.width - 1);
    const int32_t row_size = (int32_t)(problem_.width * problem_.channels), pixel_size = (int32_t)problem_.channels;
    for (int64_t i = 0; i < count_; i += L) {
      F y = load<L>(y_ + i), x = load<L>(x_ + i), mask = load<L>(mask_ + i);
      // False for what is not a number.
      const I inside = (y >= -one) & (y < height) & (x >= -one) & (x < width);
      y = keep<L>(y, inside);
      x = keep<L>(x, inside);
      const I top = floor(y), left = floor(x);
      const F below = y - __builtin_convertvector(top, F), beside = x - __builtin_convertvector(left, F);
      const I has_top = inside & (top >= none), has_bottom = inside & (top < last_row);
      const I has_left = inside & (left >= none), has_right = inside & (left < last_column);
      const F weight_top = keep<L>(one - below, has_top) * mask, weight_bottom = keep<L>(below, has_bottom) * mask;
      const F weight_left = keep<L>(one - beside, has_left), weight_right = keep<L>(beside, has_right);
      // The row -1 is read at 0, the row H at H - 1, and columns likewise.
      const I row_top = (top & (top >= none)) * row_size, row_bottom = (top - (top < last_row)) * row_size;
      const I column_left = (left & (left >= none)) * pixel_size;
      const I column_right = (left - (left < last_column)) * pixel_size;
      F record[L] = {
          (F)((row_top + column_left) | ~inside),
          (F)(row_top + column_right),
          (F)(row_bottom + column_left),
          (F)(row_bottom + column_right),
          weight_top * weight_left,
          weight_top * weight_right,
          weight_bottom * weight_left,
          weight_bottom * weight_right,
      };
      transpose(record);
      for (int j = 0; j < L; j++) store<L>((float*)(samples_ + i + j), record[j]);
      if (!GRADIENTS) continue;
      store<L>(y_ + i, below);
      store<L>(x_ + i, beside);
      const I bits = ((has_top & has_left) & 1) | ((has_top & has_right) & 2) | ((has_bottom & has_left) & 4) |
                     ((has_bottom & has_right) & 8);
      __builtin_memcpy(exists_ + i, &bits, sizeof bits);
    }
  }

  static inline __attribute__((always_inline)) Ints<L> floor(Floats<L> value) {
    const Ints<L> towards_zero = __builtin_convertvector(value, Ints<L>);
    return towards_zero + (__builtin_convertvector(towards_zero, Floats<L>) > value);  // true is -1
  }

  void write_gradient(int64_t i, int64_t to, float* grad_offset, float* grad_mask) const {
    const int32_t exists = exists_[i];
    const float* dot = dots_ + 4 * i;
    const float top_left = exists & 1 ? dot[0] : 0, top_right = exists & 2 ? dot[1] : 0;
    const float bottom_left = exists & 4 ? dot[2] : 0, bottom_right = exists & 8 ? dot[3] : 0;
    const float below = y_[i], beside = x_[i];
    const float top = top_left + beside * (top_right - top_left);
    const float bottom = bottom_left + beside * (bottom_right - bottom_left);
    const float left = top_left + below * (bottom_left - top_left);
    const float right = top_right + below * (bottom_right - top_right);
    if (grad_offset != nullptr) {
      grad_offset[2 * to] = exists ? mask_[i] * (bottom - top) : 0;  // no mask moves what lies outside
      grad_offset[2 * to + 1] = exists ? mask_[i] * (right - left) : 0;
    }
    if (grad_mask != nullptr) grad_mask[to] = top + below * (bottom - top);
  }

  const Problem& problem_;
  Sample* samples_;
  float *y_, *x_, *mask_, *grid_y_, *grid_x_;
  float* dots_ = nullptr;
  int32_t* exists_ = nullptr;
  int64_t taps_, first_ = 0, begin_ = 0, count_ = 0;
};
