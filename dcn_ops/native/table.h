// The table of sampling locations: where each tap of some output pixels reads, and with which weights.

#pragma once

#include "parallel.h"
#include "sample.h"

class Table {
 public:
  // For up to `pixels` output pixels and the taps of a block of `taps`.
  Table(const Problem& problem, Scratch& scratch, int64_t pixels, int64_t taps, bool gradients)
      : problem_(problem), image_(problem), taps_(taps) {
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
  void write_gradients(float* grad_offset, float* grad_mask) {
    for (int64_t i = 0; i < count_; i += L) {
      Distances at = {load<L>(y_ + i), load<L>(x_ + i), {}};
      __builtin_memcpy(&at.exists, exists_ + i, sizeof at.exists);
      const SampleGradients gradients = sample_gradients(dots_ + 4 * i, at, load<L>(mask_ + i));
      store<L>(y_ + i, gradients.y);
      store<L>(x_ + i, gradients.x);
      if (grad_mask != nullptr) store<L>(mask_ + i, gradients.mask);
    }
    const int64_t groups = problem_.offset_groups, all_taps = problem_.taps();
    for (int64_t i = 0, row = begin_ * groups; i < count_; i += taps_, row++) {
      const int64_t to = row * all_taps + first_;
      if (grad_offset != nullptr)
        for (int64_t tap = 0; tap < taps_; tap++) {
          grad_offset[2 * (to + tap)] = y_[i + tap];
          grad_offset[2 * (to + tap) + 1] = x_[i + tap];
        }
      if (grad_mask != nullptr) std::memcpy(grad_mask + to, mask_ + i, taps_ * sizeof(float));
    }
  }

 private:
  static constexpr int L = AT_A_TIME;

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

  INLINE_MEMBER void add_grid(const float* __restrict offset, int64_t stride, float base_y,
                                                      float base_x, float* __restrict y, float* __restrict x) const {
    const float *__restrict grid_y = grid_y_, *__restrict grid_x = grid_x_;
    for (int64_t tap = 0; tap < taps_; tap++) {
      y[tap] = offset[2 * tap * stride] + (base_y + grid_y[tap]);
      x[tap] = offset[(2 * tap + 1) * stride] + (base_x + grid_x[tap]);
    }
  }

  // The neighbours and their weights, from the positions. For gradients keep which neighbours exist, and in place of
  // positions the distances from the top left neighbour.
  template <bool GRADIENTS>
  void weigh() {
    for (int64_t i = 0; i < count_; i += L) {
      const Located located = image_.locate(load<L>(y_ + i), load<L>(x_ + i), load<L>(mask_ + i));
      located.write(samples_ + i);
      if (!GRADIENTS) continue;
      const Distances& at = located.at;
      store<L>(y_ + i, at.below);
      store<L>(x_ + i, at.beside);
      __builtin_memcpy(exists_ + i, &at.exists, sizeof at.exists);
    }
  }

  const Problem& problem_;
  const Image image_;
  Sample* samples_;
  float *y_, *x_, *mask_, *grid_y_, *grid_x_;
  float* dots_ = nullptr;
  int32_t* exists_ = nullptr;
  int64_t taps_, first_ = 0, begin_ = 0, count_ = 0;
};
