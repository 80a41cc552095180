// The filters of dense and grouped convolutions, packed for the products, and their gradients.

#pragma once

#include <vector>

#include "parallel.h"
#include "product.h"

// Taps `first` to `first + count`.
struct Taps {
  int64_t first, count;
};

// Weight [O, C / groups, K] packed for the columns' product with the filters, for some taps, in blocks of taps that
// one product takes: for each block and group, panels of filters [taps, C / groups, width].
struct PackedFilters {
  Cut cut;
  Taps taps;
  std::vector<Taps> blocks;  // their first taps are counted from that of `taps`
  float* packed;

  // Those of a group that belong to a block.
  float* of(const Problem& a, const Taps& block, int64_t group) const {
    const int64_t of_a_tap = a.group_channels() * cut.padded(a.group_filters());
    return packed + (block.first * a.groups + group * block.count) * of_a_tap;
  }
};

constexpr int64_t PACKED_CHANNELS = 32;  // at a time

// One panel of a group, in all blocks.
inline void pack_panel(const Problem& a, const PackedFilters& filters, int64_t group, int64_t panel, float* buffer) {
  // Rows of weights go through a buffer: read one beside the other, filters of a power of two of channels would
  // meet in the same sets of the cache.
  const int64_t channels = a.group_channels(), all = a.taps(), width = filters.cut.width;
  const int64_t first = panel * width, count = at_most(width, a.group_filters() - first);
  const int64_t row = PACKED_CHANNELS * all + 1;
  for (int64_t c = 0; c < channels; c += PACKED_CHANNELS) {
    const int64_t some = at_most(PACKED_CHANNELS, channels - c);
    for (int64_t i = 0; i < count; i++) {
      const float* from = a.weight + ((group * a.group_filters() + first + i) * channels + c) * all;
      std::memcpy(buffer + i * row, from, some * all * sizeof(float));
      // More rows than the machine itself reads ahead in.
      for (int64_t j = 0; j < some * all; j += 16) __builtin_prefetch(from + some * all + j);
    }
    for (const Taps& block : filters.blocks) {
      float* start = filters.of(a, block, group) + panel * width * block.count * channels;
      for (int64_t k = 0; k < block.count; k++)
        for (int64_t j = 0; j < some; j++) {
          float* to = start + (k * channels + c + j) * width;
          const float* from = buffer + j * all + filters.taps.first + block.first + k;
          for (int64_t i = 0; i < count; i++) to[i] = from[i * row];
          for (int64_t i = count; i < width; i++) to[i] = 0;
        }
    }
  }
}

inline void pack_filters(const Problem& a, const PackedFilters& filters, int64_t threads) {
  const int64_t panels = divide_up(a.group_filters(), filters.cut.width);
  const int64_t parts = at_most(threads, a.groups * panels);
  in_parts(a, parts, [&](int64_t part) {
    Scratch scratch;
    float* buffer = scratch.array<float>(filters.cut.width * (PACKED_CHANNELS * a.taps() + 1));
    const Share share = share_of(a.groups * panels, parts, part);
    for (int64_t i = share.begin; i < share.end; i++) pack_panel(a, filters, i / panels, i % panels, buffer);
  });
}

// For the gradient's product with the filters, which gives that of the columns: for each tap, `tap_size` after the one
// before, and each group, panels of channels [O / groups, width].
inline void pack_filters_transposed(const Problem& a, const Taps& taps, int64_t threads, int64_t tap_size,
                                    float* packed) {
  const int64_t channels = a.group_channels(), filters = a.group_filters(), all = a.taps();
  const int64_t width = Cut(channels).width, panels = divide_up(channels, width);
  const int64_t parts = at_most(threads, a.groups * panels);
  in_parts(a, parts, [&](int64_t part) {
    const Share share = share_of(a.groups * panels, parts, part);
    float* start = packed + share.begin * filters * width;
    for (int64_t item = share.begin; item < share.end; item++) {
      const int64_t c = item % panels * width, count = at_most(width, channels - c);
      for (int64_t o = 0; o < filters; o++, start += width) {
        const float* from = a.weight + ((item / panels * filters + o) * channels + c) * all + taps.first;
        for (int64_t k = 0; k < taps.count; k++) {
          float* to = start + k * tap_size;
          for (int64_t i = 0; i < count; i++) to[i] = from[i * all + k];
          for (int64_t i = count; i < width; i++) to[i] = 0;
        }
      }
    }
  });
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
