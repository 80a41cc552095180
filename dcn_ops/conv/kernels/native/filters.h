// The filters of dense and grouped convolutions, packed for the products, and their gradients.

#pragma once

#include "parallel.h"
#include "product.h"

// Taps `first` to `first + count`.
struct Taps {
  int64_t first, count;
};

// Of weight [O, C / groups, K], for the columns' product with the filters: for each group, panels of filters
// [taps, C / groups, width].
inline void pack_filters(const Problem& a, const Taps& taps, int64_t group, float* packed) {
  const int64_t channels = a.group_channels(), filters = a.group_filters(), all = a.taps();
  const int64_t width = Cut(filters).width;
  // Rows of weights go through a buffer: read one beside the other, filters of a power of two of channels would meet
  // in the same sets of the cache.
  constexpr int64_t CHANNELS = 32;
  Scratch scratch;
  const int64_t row = at_most(CHANNELS, channels) * all + 1;
  float* buffer = scratch.array<float>(2 * LANES * row);
  for (int64_t o = 0; o < filters; o += width) {
    const int64_t count = at_most(width, filters - o);
    for (int64_t c = 0; c < channels; c += CHANNELS) {
      const int64_t some = at_most(CHANNELS, channels - c);
      for (int64_t i = 0; i < count; i++) {
        const float* from = a.weight + ((group * filters + o + i) * channels + c) * all;
        std::memcpy(buffer + i * row, from, some * all * sizeof(float));
      }
      for (int64_t k = 0; k < taps.count; k++)
        for (int64_t j = 0; j < some; j++) {
          float* to = packed + (k * channels + c + j) * width;
          const float* from = buffer + j * all + taps.first + k;
          for (int64_t i = 0; i < count; i++) to[i] = from[i * row];
          for (int64_t i = count; i < width; i++) to[i] = 0;
        }
    }
    packed += taps.count * channels * width;
  }
}

// For the gradient's product with the filters, which gives that of the columns: for each tap, panels of channels
// [O / groups, width], `tap_size` after those of the tap before.
inline void pack_filters_transposed(const Problem& a, const Taps& taps, int64_t group, int64_t tap_size,
                                    float* packed) {
  const int64_t channels = a.group_channels(), filters = a.group_filters(), all = a.taps();
  const int64_t width = Cut(channels).width;
  for (int64_t c = 0; c < channels; c += width) {
    const int64_t count = at_most(width, channels - c);
    for (int64_t o = 0; o < filters; o++, packed += width) {
      const float* from = a.weight + ((group * filters + o) * channels + c) * all + taps.first;
      for (int64_t k = 0; k < taps.count; k++) {
        float* to = packed + k * tap_size;
        for (int64_t i = 0; i < count; i++) to[i] = from[i * all + k];
        for (int64_t i = count; i < width; i++) to[i] = 0;
      }
    }
  }
}

// Of gradients [copies, taps, O, C / groups] the sum over the copies, in their order, into weight's layout.
inline void add_up_filters(const Problem& a, const Taps& taps, const float* gradients, int64_t copies,
                           const Share& filters) {
  const int64_t channels = a.group_channels(), all = a.taps(), tap_size = a.filters * channels;
  for (int64_t o = filters.begin; o < filters.end; o++)
    for (int64_t c = 0; c < channels; c++) {
      float* to = a.grad_weight + (o * channels + c) * all + taps.first;
      for (int64_t k = 0; k < taps.count; k++) {
        const float* from = gradients + k * tap_size + o * channels + c;
        float total = 0;
        for (int64_t i = 0; i < copies; i++) total += from[i * taps.count * tap_size];
        to[k] = total;
      }
    }
}
