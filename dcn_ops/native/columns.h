// Dense and grouped convolutions: the columns of a tile of output pixels, in the cache, times the filters.

#pragma once

#include "filters.h"
#include "slices.h"
#include "table.h"

namespace columns {

// How much packed filters may take, in floats: of larger ones some taps are packed at a time. The backward has
// gradients of as many beside them.
constexpr int64_t MOST_FILTERS = 5 << 18;
// Of the forward's tiles, at most: taps times channels; their product with the pixels, a quarter MiB; and pixels.
constexpr int64_t FORWARD_DEPTH = 768, FORWARD_DEPTH_OF_GROUPS = 2304;
constexpr int64_t FORWARD_TILE = 64 << 10;
constexpr int64_t FORWARD_PIXELS = 96;

inline int64_t taps_at_a_time(const Problem& a, int64_t of_a_tap, int64_t most) {
  return at_least(1, at_most(a.taps(), most / of_a_tap));
}

// Channels of a sample, interpolated.
INLINE void interpolate(const float* image, const Sample& sample, int64_t channels, float* to) {
  constexpr int L = LANES;
  if (sample.is_outside()) {
    for (int64_t c = 0; c < channels; c++) to[c] = sample.value_outside();
    return;
  }
  const float *from_0 = image + sample.index[0], *from_1 = image + sample.index[1];
  const float *from_2 = image + sample.index[2], *from_3 = image + sample.index[3];
  const Floats<L> weight_0 = broadcast<L>(sample.weight[0]), weight_1 = broadcast<L>(sample.weight[1]);
  const Floats<L> weight_2 = broadcast<L>(sample.weight[2]), weight_3 = broadcast<L>(sample.weight[3]);
  const auto value = [&](auto load_at) __attribute__((always_inline)) {
    Floats<L> value = weight_0 * load_at(from_0);
    value += weight_1 * load_at(from_1);
    value += weight_2 * load_at(from_2);
    return value + weight_3 * load_at(from_3);
  };
  int64_t c = 0;
  for (; c + L <= channels; c += L) store<L>(to + c, value([&](const float* from) { return load<L>(from + c); }));
  if (c == channels) return;
  const int64_t last = channels - c;
  store_first<L>(to + c, value([&](const float* from) { return load_first<L>(from + c, last); }), last);
}

// The columns [pixels, taps, C] of the table's pixels, which start with `pixel`, for some of its taps.
inline void gather(const Problem& a, const Table& table, Pixel pixel, int64_t pixels, const Taps& taps, float* to) {
  const int64_t size = a.offset_group_channels();
  for (int64_t i = 0; i < pixels; i++, pixel.advance(a), to += taps.count * a.channels) {
    const float* image = a.input + pixel.image * a.image_size();
    for (int64_t group = 0; group < a.offset_groups; group++) {
      const Sample* samples = &table[table.number(i, group, taps.first)];
      for (int64_t k = 0; k < taps.count; k++)
        interpolate(image + group * size, samples[k], size, to + k * a.channels + group * size);
    }
  }
}

// A product's block of taps: several small groups read the same columns, and have few filters to read again.
inline std::vector<Taps> blocks_of(const Problem& a, int64_t taps) {
  const int64_t depth = a.groups > 1 ? FORWARD_DEPTH_OF_GROUPS : FORWARD_DEPTH;
  const int64_t count = divide_up(taps, taps_at_a_time(a, a.channels, depth));
  std::vector<Taps> blocks;
  for (int64_t i = 0; i < count; i++) {
    const Share share = share_of(taps, count, i);
    blocks.push_back({share.begin, share.end - share.begin});
  }
  return blocks;
}

inline void add_tile(const Problem& a, const PackedFilters& filters, const Table& table, int64_t begin, int64_t end,
                     float* columns) {
  const int64_t pixels = end - begin, channels = a.group_channels();
  float* out = a.output + begin * a.filters;
  if (filters.taps.first == 0 && a.bias != nullptr)
    for (int64_t i = 0; i < pixels; i++) std::memcpy(out + i * a.filters, a.bias, a.filters * sizeof(float));
  for (const Taps& block : filters.blocks) {
    gather(a, table, Pixel::at(a, begin), pixels, block, columns);
    const bool add = a.bias != nullptr || filters.taps.first + block.first > 0;
    const Depth depth = {block.count, channels, a.channels};
    for (int64_t group = 0; group < a.groups; group++) {
      const Panels panels = {filters.of(a, block, group), depth.size() * filters.cut.width, filters.cut.width};
      product<Rows::APART>(filters.cut, pixels, a.group_filters(), depth, columns + group * channels,
                           block.count * a.channels, panels, out + group * a.group_filters(), a.filters, add);
    }
  }
}

inline void forward(const Problem& a) {
  Scratch shared;
  const Cut cut(a.group_filters());
  const int64_t of_a_tap = a.channels * cut.padded(a.group_filters()), pixels = a.batch * a.out_pixels();
  const int64_t taps = taps_at_a_time(a, of_a_tap, MOST_FILTERS), threads = threads_for(a, 4 + a.group_filters());
  float* packed = shared.array<float>(taps * of_a_tap);
  for (int64_t first = 0; first < a.taps(); first += taps) {
    const Taps some = {first, at_most(taps, a.taps() - first)};
    const PackedFilters filters = {cut, some, blocks_of(a, some.count), packed};
    pack_filters(a, filters, threads);
    const int64_t parts = at_most(threads, pixels);
    in_parts(a, parts, [&](int64_t part) {
      Scratch scratch;
      const Share share = share_of(pixels, parts, part);
      const int64_t most = filters.blocks.back().count, depth = most * a.channels, own = share.end - share.begin;
      const int64_t tiles = divide_up(own, at_least(ROWS, at_most(FORWARD_TILE / depth, FORWARD_PIXELS)));
      const int64_t step = divide_up(divide_up(own, tiles), ROWS) * ROWS;
      Table table(a, scratch, step, filters.taps.count, false);
      float* columns = scratch.array<float>(step * depth);
      for (int64_t begin = share.begin; begin < share.end; begin += step) {
        const int64_t end = at_most(begin + step, share.end);
        table.fill(begin, end, first, filters.taps.count);
        add_tile(a, filters, table, begin, end, columns);
      }
    });
  }
}

}  // namespace columns
