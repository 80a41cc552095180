// The arguments of a call: the C interface. The host fills a struct, 8 bytes a field, in this order: first what all
// operators have.
//
// Legend: N batch, C input channels, O filters, H x W input size, Ho x Wo output size, kh x kw kernel, K = kh * kw
// taps, G offset groups, D = C / G channels of an offset group.

#pragma once

#include <cstdint>

// Changes with the struct or with what a function does: a library of another version is not used.
constexpr int64_t ABI_VERSION = 2;

extern "C" {

typedef void (*Range)(int64_t begin, int64_t end, void* context);
// torch_parallel_for of torch's stable C interface.
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Range range, void* context);

// What all operators have.
struct Sampling {
  int64_t batch, channels, height, width;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t offset_groups;
  int64_t remove_center;  // 1 where the kernel has no tap in its centre
  int64_t threads;
  ParallelFor parallel_for;  // null: one thread

  const float* input;   // [N, H, W, C]
  const float* offset;  // as the operator says
  const float* mask;

  float* output;  // [N, Ho, Wo, O]

  // Of the backward. A gradient that nobody asks for is null.
  const float* grad;   // [N, Ho, Wo, O]
  float* grad_input;   // [N, H, W, C]
  float* grad_offset;  // [N, Ho, Wo, G*K*2]
  float* grad_mask;    // [N, Ho, Wo, G*K]

  int64_t taps() const { return kernel_height * kernel_width - remove_center; }
  int64_t image_size() const { return height * width * channels; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t offset_group_channels() const { return channels / offset_groups; }
};

// A convolution. Its offset is [N, G*K*2, Ho, Wo] of any strides, per tap (y, x); its mask [N, G*K, Ho, Wo] of any
// strides, or null.
struct Problem : Sampling {
  int64_t filters, groups;
  int64_t offset_strides[4], mask_strides[4];  // in elements

  const float* weight;  // [O, C / groups, K]
  const float* bias;    // [O] or null
  float* grad_weight;   // [O, C / groups, K]

  int64_t group_channels() const { return channels / groups; }
  int64_t group_filters() const { return filters / groups; }
};

// An aggregation: O = C, and the offset is [N, Ho, Wo, G*K*2], per tap (x, y), the mask [N, Ho, Wo, G*K]. The taps go
// down the columns of the kernel.
struct Aggregation : Sampling {
  double offset_scale;
};

}  // extern "C"

// An output pixel.
struct Pixel {
  int64_t image, y, x;

  // The index counts the pixels of all images.
  static Pixel at(const Sampling& a, int64_t index) {
    const int64_t within = index % a.out_pixels();
    return {index / a.out_pixels(), within / a.out_width, within % a.out_width};
  }

  void advance(const Sampling& a) {
    if (++x < a.out_width) return;
    x = 0;
    if (++y < a.out_height) return;
    y = 0;
    image++;
  }
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
