// The backward of dense and grouped convolutions, tap by tap of a tile of output pixels: the columns' gradient from
// that of the output, the samples again, and what both give: gradients of the image, of offset and mask, of filters.

#pragma once

#include "columns.h"

namespace columns {

// The samples of a tap, [pixels, C]; or, so that the product reads them in a row, panels [C / width, pixels, width].
struct Samples {
  float* values;
  int64_t mask, pixels, row;

  Samples(const Problem& a, const Cut& cut, float* values, int64_t pixels) : values(values), pixels(pixels) {
    // A vector of channels must not lie in two panels.
    const bool panels = cut.width % LANES == 0 && (a.groups == 1 || a.group_channels() % cut.width == 0) &&
                        (a.offset_groups == 1 || a.offset_group_channels() % LANES == 0);
    mask = panels ? cut.width - 1 : -1;
    row = panels ? cut.width : a.channels;
  }
  float* at(int64_t pixel, int64_t channel) const {
    return values + (channel & ~mask) * pixels + pixel * row + (channel & mask);
  }
  // Columns from a channel on, which is the first of a group or of a panel.
  Panels from(const Cut& cut, int64_t channel) const {
    return {at(0, channel), mask == -1 ? cut.width : cut.width * pixels, row};
  }
};

// What the backward reads and writes for a tap of a tile.
struct Gradients {
  const float *image, *of_columns;  // of_columns: [pixels, C]
  float* grad_image;
  Samples samples;
};

// Of some channels: adds to the gradient of the image and to the products that those of offset and mask are made of,
// and writes the sample.
template <bool IMAGE, bool SAMPLES, bool PARTIAL>
INLINE void channels_backward(const Gradients& at, const float* of_column, float* to, int64_t c, int64_t count,
                              const int64_t index[4], const Floats<LANES> weight[4],
                              Floats<LANES> products[4]) {
  constexpr int L = LANES;
  const Floats<L> grad = load_up_to<L, PARTIAL>(of_column + c, count);
  Floats<L> value = zeros<L>();
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const Floats<L> neighbour = load_up_to<L, PARTIAL>(at.image + index[j] + c, count);
    products[j] += grad * neighbour;
    if (SAMPLES) value += weight[j] * neighbour;
  }
  if (SAMPLES) store_up_to<L, PARTIAL>(to, value, count);
  if (!IMAGE) return;
  // One after the other: at the border two neighbours are the same pixel.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    float* to = at.grad_image + index[j] + c;
    store_up_to<L, PARTIAL>(to, load_up_to<L, PARTIAL>(to, count) + weight[j] * grad, count);
  }
}

inline void set_sample(const Samples& samples, int64_t pixel, const Share& channels, float value) {
  for (int64_t c = channels.begin; c < channels.end; c++) *samples.at(pixel, c) = value;
}

// The channels of a segment, for all pixels of the tile; `tap` is counted in the table.
template <bool IMAGE, bool SAMPLES>
void segment_backward(const Problem& a, const Gradients at, const Segment& segment, Table& table, int64_t tap,
                      int64_t pixels) {
  constexpr int L = LANES;
  const int64_t begin = segment.channels.begin, end = segment.channels.end, whole = begin + (end - begin) / L * L;
  for (int64_t i = 0; i < pixels; i++) {
    const int64_t number = table.number(i, segment.group, tap);
    const Sample& sample = table[number];
    if (sample.is_outside()) {
      if (SAMPLES) set_sample(at.samples, i, segment.channels, sample.value_outside());
      continue;
    }
    const float* of_column = at.of_columns + i * a.channels;
    int64_t index[4];
    Floats<L> weight[4], products[4] = {};
    copy_sample(sample, index, weight);
    for (int64_t c = begin; c < whole; c += L)
      channels_backward<IMAGE, SAMPLES, false>(at, of_column, at.samples.at(i, c), c, L, index, weight, products);
    if (whole < end)
      channels_backward<IMAGE, SAMPLES, true>(at, of_column, at.samples.at(i, whole), whole, end - whole, index,
                                              weight, products);
    float* dots = table.dots(number);
    store<4>(dots, load<4>(dots) + sums<L>(products));
  }
}

typedef void (*SegmentBackward)(const Problem&, Gradients, const Segment&, Table&, int64_t, int64_t);

inline SegmentBackward segment_backward_of(const Problem& a) {
  if (a.grad_input == nullptr)
    return a.grad_weight == nullptr ? segment_backward<false, false> : segment_backward<false, true>;
  return a.grad_weight == nullptr ? segment_backward<true, false> : segment_backward<true, true>;
}

// The gradients of the images and channels of a part, for a block of taps, tile by tile.
class PartBackward {
 public:
  // filters: packed, [taps, groups, panels]. grad_filters: [taps, O, C / groups], to which this adds.
  PartBackward(const Problem& a, const Part& part, const Taps& taps, const float* filters, float* grad_filters)
      : a_(a), part_(part), taps_(taps), filters_(filters), grad_filters_(grad_filters), cut_(a.group_channels()),
        step_(pixels_at_a_time(a)), table_(a, scratch_, step_, taps.count, true),
        grad_columns_(scratch_.array<float>(step_ * a.channels)),
        samples_(scratch_.array<float>(step_ * cut_.padded(a.channels))),
        packed_grad_(scratch_.array<float>(step_ * a.filters)) {}

  void run() {
    const int64_t pixels = a_.out_pixels();
    for (int64_t n = part_.images.begin; n < part_.images.end; n++) {
      if (a_.grad_input != nullptr && taps_.first == 0)
        clear_channels(a_, part_.channels, a_.grad_input + n * a_.image_size());
      for (int64_t begin = 0; begin < pixels; begin += step_)
        add_tile(n, n * pixels + begin, at_most(step_, pixels - begin));
    }
  }

 private:
  // Groups are cheap to multiply: what passes between the steps should stay in the first cache. Dense filters should
  // be read for many pixels.
  static int64_t pixels_at_a_time(const Problem& a) {
    const int64_t most = a.groups > 1 ? 8192 / a.channels : at_most(384, (1 << 19) / a.channels);
    const int64_t step = at_most(a.out_pixels(), at_least(ROWS, most));
    return divide_up(a.out_pixels(), divide_up(a.out_pixels(), step));  // tiles of about the same size
  }

  void add_tile(int64_t image, int64_t begin, int64_t pixels) {
    table_.fill(begin, begin + pixels, taps_.first, taps_.count);
    const float* grad = a_.grad + begin * a_.filters;
    const int64_t filters = a_.group_filters();
    if (a_.grad_weight != nullptr)
      for (int64_t group = 0; group < a_.groups; group++)
        pack_rows(filters, pixels, grad + group * filters, a_.filters, packed_grad_ + group * filters * pixels);
    for (int64_t tap = 0; tap < taps_.count; tap++) {
      multiply_by_filters(grad, tap, pixels);
      add_samples(image, tap, pixels);
      if (a_.grad_weight != nullptr) add_filters(tap, pixels);
    }
    table_.write_gradients(part_.grad_offset, part_.grad_mask);
  }

  // Call `work(group, begin, end)` for the channels of each group that belong to the part.
  template <class Work>
  void for_groups(const Work& work) const {
    const int64_t size = a_.group_channels();
    for (int64_t c = part_.channels.begin; c < part_.channels.end;) {
      const int64_t group = c / size, end = at_most((group + 1) * size, part_.channels.end);
      work(group, c, end);
      c = end;
    }
  }

  // The gradient of a tap's columns.
  void multiply_by_filters(const float* grad, int64_t tap, int64_t pixels) {
    const int64_t size = a_.group_channels(), filters = a_.group_filters();
    const int64_t of_a_group = filters * cut_.padded(size);
    for_groups([&](int64_t group, int64_t begin, int64_t end) {
      const float* packed = filters_ + (tap * a_.groups + group) * of_a_group + (begin - group * size) * filters;
      product<Rows::APART>(cut_, pixels, end - begin, {1, filters, 0}, grad + group * filters, a_.filters,
                           {packed, cut_.width * filters, cut_.width}, grad_columns_ + begin, a_.channels, false);
    });
  }

  void add_samples(int64_t image, int64_t tap, int64_t pixels) {
    const int64_t start = image * a_.image_size();
    const Gradients at = {a_.input + start, grad_columns_, a_.grad_input == nullptr ? nullptr : a_.grad_input + start,
                          Samples(a_, cut_, samples_, pixels)};
    const SegmentBackward segment_backward = segment_backward_of(a_);
    for (const Segment& segment : part_.segments) segment_backward(a_, at, segment, table_, tap, pixels);
  }

  void add_filters(int64_t tap, int64_t pixels) {
    const int64_t size = a_.group_channels(), filters = a_.group_filters();
    const Samples samples(a_, cut_, samples_, pixels);
    for_groups([&](int64_t group, int64_t begin, int64_t end) {
      float* to = grad_filters_ + (tap * a_.filters + group * filters) * size + begin - group * size;
      product<Rows::PACKED>(cut_, filters, end - begin, {1, pixels, 0}, packed_grad_ + group * filters * pixels, 0,
                            samples.from(cut_, begin), to, size, true);
    });
  }

  const Problem& a_;
  const Part& part_;
  const Taps taps_;
  const float* filters_;
  float* grad_filters_;
  const Cut cut_;
  const int64_t step_;
  Scratch scratch_;
  Table table_;
  float *grad_columns_, *samples_, *packed_grad_;
};

inline void backward(const Problem& a) {
  Scratch shared;
  const Cut cut(a.group_channels());
  const int64_t of_a_group = a.group_filters() * cut.padded(a.group_channels()), of_a_tap = a.groups * of_a_group;
  const int64_t most = taps_at_a_time(a, of_a_tap, MOST_FILTERS), size = a.filters * a.group_channels();
  const bool large = size * most > 1 << 19;
  const int64_t grain = a.groups == 1 || a.group_channels() % cut.width == 0 ? cut.width : a.group_channels();
  const int64_t threads = threads_for(a, 4 + a.group_filters());
  Parts parts(a, shared, threads, grain, large);
  float* filters = shared.array<float>(most * of_a_tap);
  float* grad_filters = shared.array<float>(parts.image_parts() * most * size);
  for (int64_t first = 0; first < a.taps(); first += most) {
    const Taps taps = {first, at_most(most, a.taps() - first)};
    std::memset(grad_filters, 0, parts.image_parts() * taps.count * size * sizeof(float));
    pack_filters_transposed(a, taps, threads, of_a_tap, filters);
    in_parts(a, parts.count(), [&](int64_t i) {
      const Part part = parts.part(i);
      float* own = grad_filters + part.image_part * taps.count * size;
      PartBackward(a, part, taps, filters, own).run();
    });
    if (a.grad_weight != nullptr) add_up_filters(a, taps, grad_filters, parts.image_parts(), {0, a.filters});
  }
  parts.add_up_maps();
}

}  // namespace columns
