// Depthwise convolutions: a filter a channel. No columns: a sample is weighed by its filter where it is computed.

#pragma once

#include "slices.h"
#include "table.h"

namespace depthwise {

// So many pixels that their table stays in the cache, beside the rows of the image that they read.
inline int64_t pixels_at_a_time(const Problem& a) {
  return at_least(1, 4096 / (a.offset_groups * a.taps()));
}

// [C, K] -> [K, C]
inline void filters_by_tap(const Problem& a, float* filters) {
  const int64_t taps = a.taps();
  for (int64_t c = 0; c < a.channels; c++)
    for (int64_t k = 0; k < taps; k++) filters[k * a.channels + c] = a.weight[c * taps + k];
}

// The pixel that a row of taps will reach next: one of every output pixel's, a row ahead of use.
inline void prefetch(const Problem& a, const Pixel& pixel) {
  const int64_t y = pixel.y * a.stride_y - a.padding_y + (a.kernel_height - 1) * a.dilation_y + 3;
  const int64_t x = pixel.x * a.stride_x - a.padding_x + (a.kernel_width - 1) * a.dilation_x + 2;
  const float* image = a.input + pixel.image * a.image_size();
  const float* from = image + (at_most(y, a.height - 1) * a.width + at_most(x, a.width - 1)) * a.channels;
  for (int64_t c = 0; c < a.channels; c += 16) __builtin_prefetch(from + c);
}

// Some channels of an output pixel, in registers across the taps: V vectors, the last one with `last` lanes where
// PARTIAL is true. The samples are those of all taps of an offset group.
template <int V, bool PARTIAL>
void output_block(const float* image, const Sample* samples, int64_t taps, const float* filters, int64_t channels,
                  const float* bias, float* out, int64_t last) {
  constexpr int L = LANES;
  const auto load_of = [last](const float* from, int v) __attribute__((always_inline)) {
    return v == V - 1 ? load_up_to<L, PARTIAL>(from + v * L, last) : load<L>(from + v * L);
  };
  Floats<L> total[V];
#pragma GCC unroll 12
  for (int v = 0; v < V; v++) total[v] = bias == nullptr ? zeros<L>() : load_of(bias, v);
  for (int64_t k = 0; k < taps; k++, filters += channels) {
    const Sample& sample = samples[k];
    if (sample.is_outside()) {
      if (sample.value_outside() == 0) continue;
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) total[v] += broadcast<L>(sample.value_outside());
      continue;
    }
    const float *from_0 = image + sample.index[0], *from_1 = image + sample.index[1];
    const float *from_2 = image + sample.index[2], *from_3 = image + sample.index[3];
    const Floats<L> weight_0 = broadcast<L>(sample.weight[0]), weight_1 = broadcast<L>(sample.weight[1]);
    const Floats<L> weight_2 = broadcast<L>(sample.weight[2]), weight_3 = broadcast<L>(sample.weight[3]);
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) {
      Floats<L> value = weight_0 * load_of(from_0, v);
      value += weight_1 * load_of(from_1, v);
      value += weight_2 * load_of(from_2, v);
      value += weight_3 * load_of(from_3, v);
      total[v] += value * load_of(filters, v);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < V - 1; v++) store<L>(out + v * L, total[v]);
  store_up_to<L, PARTIAL>(out + (V - 1) * L, total[V - 1], last);
}

typedef void (*OutputBlock)(const float*, const Sample*, int64_t, const float*, int64_t, const float*, float*,
                            int64_t);

constexpr int MOST = 12;  // vectors in registers

template <bool PARTIAL>
OutputBlock output_block_of(int64_t vectors) {
  static constexpr OutputBlock BLOCKS[MOST] = {
      output_block<1, PARTIAL>, output_block<2, PARTIAL>,  output_block<3, PARTIAL>,  output_block<4, PARTIAL>,
      output_block<5, PARTIAL>, output_block<6, PARTIAL>,  output_block<7, PARTIAL>,  output_block<8, PARTIAL>,
      output_block<9, PARTIAL>, output_block<10, PARTIAL>, output_block<11, PARTIAL>, output_block<12, PARTIAL>,
  };
  return BLOCKS[vectors - 1];
}

// The blocks of channels of an offset group, of about equal size.
struct Blocks {
  struct Block {
    int64_t channel, last;
    OutputBlock output;
  };
  std::vector<Block> blocks;

  explicit Blocks(int64_t channels) {
    const int64_t vectors = divide_up(channels, LANES), count = divide_up(vectors, MOST), last = channels % LANES;
    for (int64_t i = 0; i < count; i++) {
      const Share share = share_of(vectors, count, i);
      const bool partial = last != 0 && share.end == vectors;
      const int64_t size = share.end - share.begin;
      const OutputBlock output = partial ? output_block_of<true>(size) : output_block_of<false>(size);
      blocks.push_back({share.begin * LANES, last, output});
    }
  }
};

inline void forward(const Problem& a) {
  Scratch shared;
  const int64_t taps = a.taps(), size = a.offset_group_channels(), pixels = a.batch * a.out_pixels();
  float* filters = shared.array<float>(taps * a.channels);
  filters_by_tap(a, filters);
  const Blocks blocks(size);
  const int64_t parts = at_most(threads_for(a, 4 + a.group_filters()), pixels);
  in_parts(a, parts, [&](int64_t part) {
    Scratch scratch;
    const Share share = share_of(pixels, parts, part);
    const int64_t step = at_most(pixels_at_a_time(a), share.end - share.begin);
    Table table(a, scratch, step, taps, false);
    Pixel pixel = Pixel::at(a, share.begin);
    for (int64_t begin = share.begin; begin < share.end; begin += step) {
      const int64_t end = at_most(begin + step, share.end);
      table.fill(begin, end, 0, taps);
      for (int64_t i = begin; i < end; i++, pixel.advance(a)) {
        prefetch(a, pixel);
        const float* image = a.input + pixel.image * a.image_size();
        for (int64_t group = 0; group < a.offset_groups; group++) {
          const Sample* samples = &table[table.number(i - begin, group, 0)];
          for (const Blocks::Block& block : blocks.blocks) {
            const int64_t c = group * size + block.channel;
            block.output(image + c, samples, taps, filters + c, a.channels, a.bias == nullptr ? nullptr : a.bias + c,
                         a.output + i * a.channels + c, block.last);
          }
        }
      }
    }
  });
}

// What the backward reads and writes at some channels.
struct Gradients {
  const float *image, *filters, *grad;
  float *grad_image, *grad_filters;  // null where nobody asks
};

// The channels of a sample: the gradients of image and filter, and the products that those of offset and mask are
// made of.
template <bool IMAGE, bool FILTERS, bool PARTIAL>
INLINE void channels_backward(const Gradients& at, int64_t c, int64_t count, const int64_t index[4],
                              const Floats<LANES> weight[4], Floats<LANES> products[4]) {
  constexpr int L = LANES;
  const Floats<L> grad = load_up_to<L, PARTIAL>(at.grad + c, count);
  const Floats<L> of_sample = grad * load_up_to<L, PARTIAL>(at.filters + c, count);
  Floats<L> value = zeros<L>();
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const Floats<L> neighbour = load_up_to<L, PARTIAL>(at.image + index[j] + c, count);
    products[j] += of_sample * neighbour;
    if (FILTERS) value += weight[j] * neighbour;
  }
  if (FILTERS) {
    float* to = at.grad_filters + c;
    store_up_to<L, PARTIAL>(to, load_up_to<L, PARTIAL>(to, count) + grad * value, count);
  }
  if (!IMAGE) return;
  // One after the other: at the border two neighbours are the same pixel.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    float* to = at.grad_image + index[j] + c;
    store_up_to<L, PARTIAL>(to, load_up_to<L, PARTIAL>(to, count) + weight[j] * of_sample, count);
  }
}

// The channels of an output pixel, of one offset group: `samples` and `dots` are those of its taps.
template <bool IMAGE, bool FILTERS>
void pixel_backward(const Problem& a, Gradients at, int64_t channels, const Sample* samples, float* dots) {
  constexpr int L = LANES;
  const int64_t taps = a.taps(), whole = channels / L * L;
  for (int64_t k = 0; k < taps; k++, dots += 4, at.filters += a.channels, at.grad_filters += a.channels) {
    const Sample& sample = samples[k];
    if (sample.is_outside()) {
      if (FILTERS && sample.value_outside() != 0)
        for (int64_t c = 0; c < channels; c++) at.grad_filters[c] += sample.value_outside();
      continue;
    }
    int64_t index[4];
    Floats<L> weight[4], products[4] = {};
    copy_sample(sample, index, weight);
    for (int64_t c = 0; c < whole; c += L)
      channels_backward<IMAGE, FILTERS, false>(at, c, L, index, weight, products);
    if (whole < channels)
      channels_backward<IMAGE, FILTERS, true>(at, whole, channels - whole, index, weight, products);
    store<4>(dots, load<4>(dots) + sums<L>(products));
  }
}

typedef void (*PixelBackward)(const Problem&, Gradients, int64_t, const Sample*, float*);

inline PixelBackward pixel_backward_of(const Problem& a) {
  if (a.grad_input == nullptr)
    return a.grad_weight == nullptr ? pixel_backward<false, false> : pixel_backward<false, true>;
  return a.grad_weight == nullptr ? pixel_backward<true, false> : pixel_backward<true, true>;
}

// The gradients of the images and channels of a part. Those of the filters, [K, C], are added to `grad_filters`.
inline void backward_of_part(const Problem& a, const Part& part, const float* filters, float* grad_filters) {
  Scratch scratch;
  const int64_t taps = a.taps(), pixels = a.out_pixels(), step = at_most(pixels_at_a_time(a), pixels);
  const PixelBackward pixel_backward = pixel_backward_of(a);
  Table table(a, scratch, step, taps, true);
  // Thousands of terms are added up in steps, so that fewer round each sum.
  float* of_step = scratch.array<float>(taps * a.channels);
  for (int64_t n = part.images.begin; n < part.images.end; n++) {
    const float* image = a.input + n * a.image_size();
    float* grad_image = a.grad_input == nullptr ? nullptr : a.grad_input + n * a.image_size();
    if (grad_image != nullptr) clear_channels(a, part.channels, grad_image);
    for (int64_t begin = n * pixels; begin < (n + 1) * pixels; begin += step) {
      const int64_t end = at_most(begin + step, (n + 1) * pixels);
      table.fill(begin, end, 0, taps);
      std::memset(of_step, 0, taps * a.channels * sizeof(float));
      for (int64_t i = begin; i < end; i++)
        for (const Segment& segment : part.segments) {
          const int64_t c = segment.channels.begin, first = table.number(i - begin, segment.group, 0);
          const Gradients at = {image + c, filters + c, a.grad + i * a.channels + c,
                                grad_image == nullptr ? nullptr : grad_image + c, of_step + c};
          pixel_backward(a, at, segment.channels.end - c, &table[first], table.dots(first));
        }
      table.write_gradients(part.grad_offset, part.grad_mask);
      for (int64_t k = 0; k < taps; k++)
        for (int64_t c = part.channels.begin; c < part.channels.end; c++)
          grad_filters[k * a.channels + c] += of_step[k * a.channels + c];
    }
  }
}

inline void backward(const Problem& a) {
  Scratch shared;
  const int64_t taps = a.taps(), size = taps * a.channels;
  float* filters = shared.array<float>(size);
  filters_by_tap(a, filters);
  Parts parts(a, shared, threads_for(a, 4 + a.group_filters()), LANES, false);
  float* grad_filters = shared.zeros<float>(parts.image_parts() * size);
  in_parts(a, parts.count(), [&](int64_t i) {
    const Part part = parts.part(i);
    backward_of_part(a, part, filters, grad_filters + part.image_part * size);
  });
  parts.add_up_maps();
  if (a.grad_weight == nullptr) return;
  for (int64_t c = 0; c < a.channels; c++)
    for (int64_t k = 0; k < taps; k++) {
      float total = 0;
      for (int64_t i = 0; i < parts.image_parts(); i++) total += grad_filters[i * size + k * a.channels + c];
      a.grad_weight[c * taps + k] = total;
    }
}

}  // namespace depthwise
