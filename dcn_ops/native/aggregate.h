// Aggregations, DCNv3 and DCNv4: an output value is a weighted sum of samples, without a filter. The table of an output
// pixel is made and read at once, in the first cache.

#pragma once

#include "parallel.h"
#include "sample.h"

namespace aggregate {

// The samples of some groups at an output pixel, one after the other: [groups, K].
class Samples {
 public:
  Samples(const Aggregation& a, Scratch& scratch, const Share& groups, bool gradients)
      : a_(a), image_(a), first_(groups.begin * a.taps()), count_((groups.end - groups.begin) * a.taps()) {
    const int64_t size = divide_up(count_, L) * L;
    samples_ = scratch.array<EightSamples>(size / L);
    grid_y_ = scratch.zeros<float>(size);
    grid_x_ = scratch.zeros<float>(size);
    for (int64_t i = 0; i < count_; i++) set_grid(i);
    if (!gradients) return;
    dots_ = scratch.array<float>(4 * size);
    distances_ = scratch.array<Distances>(size / L);
  }

  // `index` counts the pixels of all images.
  void fill(const Pixel& pixel, int64_t index) {
    const float base_y = (float)(pixel.y * a_.stride_y + half(a_.kernel_height, a_.dilation_y) - a_.padding_y);
    const float base_x = (float)(pixel.x * a_.stride_x + half(a_.kernel_width, a_.dilation_x) - a_.padding_x);
    for_eights(index, [&](int64_t i, const float* offset, const float* mask, int64_t) __attribute__((always_inline)) {
      const float scale = (float)a_.offset_scale;
      Eight x, y;
      split_pairs(offset, x, y);
      x = x * scale + (base_x + load<L>(grid_x_ + i));
      y = y * scale + (base_y + load<L>(grid_y_ + i));
      const Located located = image_.locate(y, x, load<L>(mask));
      located.write(samples_ + i / L);
      if (dots_ != nullptr) distances_[i / L] = located.at;
    });
    if (dots_ != nullptr) std::memset(dots_, 0, 4 * count_ * sizeof(float));
  }

  // Of all groups; those of a group begin at its number times the taps.
  const EightSamples* all() const { return samples_; }
  // Where the backward adds up, for each of a sample's neighbours, its product with the gradient of the output.
  float* dots_of_group(int64_t group) { return dots_ + 4 * group * a_.taps(); }

  // Write the gradients of offset and mask, which the dots give.
  void write_gradients(int64_t index) const {
    const int64_t to = index * a_.offset_groups * a_.taps() + first_;
    float* grad_offset = a_.grad_offset == nullptr ? nullptr : a_.grad_offset + 2 * to;
    float* grad_mask = a_.grad_mask == nullptr ? nullptr : a_.grad_mask + to;
    const float scale = (float)a_.offset_scale;
    for_eights(index, [&](int64_t i, const float*, const float* mask, int64_t size) __attribute__((always_inline)) {
      const SampleGradients gradients = sample_gradients(dots_ + 4 * i, distances_[i / L], load<L>(mask));
      const Eight x = gradients.x * scale, y = gradients.y * scale;
      if (size == L) {
        if (grad_offset != nullptr) store_pairs(grad_offset + 2 * i, x, y);
        if (grad_mask != nullptr) store<L>(grad_mask + i, gradients.mask);
        return;
      }
      float pairs[2 * L];
      store_pairs(pairs, x, y);
      if (grad_offset != nullptr) std::memcpy(grad_offset + 2 * i, pairs, 2 * size * sizeof(float));
      if (grad_mask != nullptr) store_first<L>(grad_mask + i, gradients.mask, size);
    });
  }

 private:
  static constexpr int L = AT_A_TIME;

  static int64_t half(int64_t kernel, int64_t dilation) { return dilation * (kernel - 1) / 2; }

  // Where a sample is without its offset, from the centre of the window.
  void set_grid(int64_t i) {
    const int64_t tap = i % a_.taps(), at = tap + (a_.remove_center && tap >= a_.taps() / 2 ? 1 : 0);
    const int64_t column = at / a_.kernel_height, row = at % a_.kernel_height;
    const float scale = (float)a_.offset_scale;
    grid_y_[i] = scale * (float)(row * a_.dilation_y - half(a_.kernel_height, a_.dilation_y));
    grid_x_[i] = scale * (float)(column * a_.dilation_x - half(a_.kernel_width, a_.dilation_x));
  }

  // Call `work(i, offset, mask, size)` for eight samples at a time, and for the rest, of `size`, as for eight.
  template <class Work>
  INLINE_MEMBER void for_eights(int64_t index, const Work& work) const {
    const int64_t from = index * a_.offset_groups * a_.taps() + first_;
    const float *offset = a_.offset + 2 * from, *mask = a_.mask + from;
    int64_t i = 0;
    for (; i + L <= count_; i += L) work(i, offset + 2 * i, mask + i, L);
    if (i == count_) return;
    float last_offset[2 * L] = {}, last_mask[L] = {};
    std::memcpy(last_offset, offset + 2 * i, 2 * (count_ - i) * sizeof(float));
    std::memcpy(last_mask, mask + i, (count_ - i) * sizeof(float));
    work(i, last_offset, last_mask, count_ - i);
  }

  const Aggregation& a_;
  const Image image_;
  const int64_t first_, count_;
  EightSamples* samples_;
  float *grid_y_, *grid_x_, *dots_ = nullptr;
  Distances* distances_ = nullptr;
};

// Some channels of a group, in registers across the taps: V vectors, the last one with `last` lanes where PARTIAL is
// true. `image` and `out` point to the first of them.
template <int V, bool PARTIAL>
INLINE void sum_samples(const float* image, const EightSamples* samples, const Share& taps, float* out, int64_t last) {
  constexpr int L = LANES;
  Floats<L> total[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) total[v] = zeros<L>();
  for (int64_t k = taps.begin; k < taps.end; k++) {
    const Sample sample = sample_at(samples, k);
    if (sample.is_outside()) {
      if (sample.value_outside() == 0) continue;
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) total[v] += broadcast<L>(sample.value_outside());
      continue;
    }
    const float* from[4];
    Floats<L> weight[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      from[j] = image + sample.index[j];
      weight[j] = broadcast<L>(sample.weight[j]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const auto load_of = [last, v](const float* from) __attribute__((always_inline)) {
        return v == V - 1 ? load_up_to<L, PARTIAL>(from + v * L, last) : load<L>(from + v * L);
      };
      Floats<L> value = weight[0] * load_of(from[0]);  // taps wait for each other in one sum only
      value += weight[1] * load_of(from[1]);
      value += weight[2] * load_of(from[2]);
      total[v] += value + weight[3] * load_of(from[3]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V - 1; v++) store<L>(out + v * L, total[v]);
  store_up_to<L, PARTIAL>(out + (V - 1) * L, total[V - 1], last);
}

// The same channels of all groups at an output pixel.
template <int V, bool PARTIAL>
void sum_groups(const Aggregation& a, const float* image, const Samples& samples, float* out, int64_t last) {
  const int64_t taps = a.taps(), size = a.offset_group_channels();
  for (int64_t group = 0; group < a.offset_groups; group++) {
    const Share of_group = {group * taps, (group + 1) * taps};
    sum_samples<V, PARTIAL>(image + group * size, samples.all(), of_group, out + group * size, last);
  }
}

typedef void (*SumGroups)(const Aggregation&, const float*, const Samples&, float*, int64_t);

constexpr int MOST = 8;  // vectors in registers

template <bool PARTIAL>
SumGroups sum_groups_of(int64_t vectors) {
  static constexpr SumGroups OF_SIZE[MOST] = {
      sum_groups<1, PARTIAL>, sum_groups<2, PARTIAL>, sum_groups<3, PARTIAL>, sum_groups<4, PARTIAL>,
      sum_groups<5, PARTIAL>, sum_groups<6, PARTIAL>, sum_groups<7, PARTIAL>, sum_groups<8, PARTIAL>,
  };
  return OF_SIZE[vectors - 1];
}

inline void forward_of_pixel(const Aggregation& a, const Pixel& pixel, int64_t index, const Samples& samples) {
  const int64_t size = a.offset_group_channels();
  const float* image = a.input + pixel.image * a.image_size();
  for (int64_t c = 0; c < size; c += MOST * LANES) {
    const int64_t count = at_most(MOST * LANES, size - c), last = count % LANES;
    const SumGroups sum = last == 0 ? sum_groups_of<false>(count / LANES) : sum_groups_of<true>(count / LANES + 1);
    sum(a, image + c, samples, a.output + index * a.channels + c, last);
  }
}

inline void forward(const Aggregation& a) {
  const int64_t pixels = a.batch * a.out_pixels(), parts = at_most(threads_for(a, 4), pixels);
  in_parts(a, parts, [&](int64_t part) {
    Scratch scratch;
    const Share share = share_of(pixels, parts, part);
    Samples samples(a, scratch, {0, a.offset_groups}, false);
    Pixel pixel = Pixel::at(a, share.begin);
    for (int64_t i = share.begin; i < share.end; i++, pixel.advance(a)) {
      samples.fill(pixel, i);
      forward_of_pixel(a, pixel, i, samples);
    }
  });
}

// Some channels of a sample: adds to the gradient of the image, and to the products that those of offset and mask are
// made of. The pointers are those of the group.
template <bool IMAGE, bool PARTIAL>
INLINE void channels_backward(const float* image, const float* grad, float* grad_image, int64_t c, int64_t count,
                              const int64_t index[4], const Floats<LANES> weight[4], Floats<LANES> products[4]) {
  constexpr int L = LANES;
  const Floats<L> of_output = load_up_to<L, PARTIAL>(grad + c, count);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) products[j] += of_output * load_up_to<L, PARTIAL>(image + index[j] + c, count);
  if (!IMAGE) return;
  // One after the other: at the border two neighbours are the same pixel.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    float* to = grad_image + index[j] + c;
    store_up_to<L, PARTIAL>(to, load_up_to<L, PARTIAL>(to, count) + weight[j] * of_output, count);
  }
}

// The channels of a group at an output pixel: V vectors, or where V is 0, any number.
template <bool IMAGE, int V>
void group_backward(const Aggregation& a, const float* image, const float* grad, float* grad_image,
                    const EightSamples* samples, int64_t first, float* dots) {
  constexpr int L = LANES;
  const int64_t taps = a.taps(), channels = V > 0 ? V * L : a.offset_group_channels(), whole = channels / L * L;
  for (int64_t k = first; k < first + taps; k++, dots += 4) {
    const Sample sample = sample_at(samples, k);
    if (sample.is_outside()) continue;
    int64_t index[4];
    Floats<L> weight[4], products[4] = {};
    copy_sample(sample, index, weight);
    for (int64_t c = 0; c < whole; c += L)
      channels_backward<IMAGE, false>(image, grad, grad_image, c, L, index, weight, products);
    if (whole < channels)
      channels_backward<IMAGE, true>(image, grad, grad_image, whole, channels - whole, index, weight, products);
    store<4>(dots, sums<L>(products));
  }
}

typedef void (*GroupBackward)(const Aggregation&, const float*, const float*, float*, const EightSamples*, int64_t,
                              float*);

template <bool IMAGE>
GroupBackward group_backward_of(const Aggregation& a) {
  switch (a.offset_group_channels()) {
    case LANES: return group_backward<IMAGE, 1>;
    case 2 * LANES: return group_backward<IMAGE, 2>;
    case 4 * LANES: return group_backward<IMAGE, 4>;
    default: return group_backward<IMAGE, 0>;
  }
}

inline void clear_groups(const Aggregation& a, const Share& groups, float* image) {
  const int64_t size = a.offset_group_channels(), count = (groups.end - groups.begin) * size;
  for (int64_t i = 0; i < a.height * a.width; i++)
    std::memset(image + i * a.channels + groups.begin * size, 0, count * sizeof(float));
}

inline void backward_of_images(const Aggregation& a, const Share& images, const Share& groups) {
  Scratch scratch;
  const int64_t size = a.offset_group_channels();
  Samples samples(a, scratch, groups, true);
  const GroupBackward group_backward =
      a.grad_input == nullptr ? group_backward_of<false>(a) : group_backward_of<true>(a);
  for (int64_t n = images.begin; n < images.end; n++) {
    const float* image = a.input + n * a.image_size();
    float* grad_image = a.grad_input == nullptr ? nullptr : a.grad_input + n * a.image_size();
    if (grad_image != nullptr) clear_groups(a, groups, grad_image);
    Pixel pixel = {n, 0, 0};
    for (int64_t i = n * a.out_pixels(); i < (n + 1) * a.out_pixels(); i++, pixel.advance(a)) {
      samples.fill(pixel, i);
      for (int64_t group = groups.begin; group < groups.end; group++) {
        const int64_t c = group * size, number = group - groups.begin;
        const float* grad = a.grad + i * a.channels + c;
        float* to = grad_image == nullptr ? nullptr : grad_image + c;
        group_backward(a, image + c, grad, to, samples.all(), number * a.taps(), samples.dots_of_group(number));
      }
      samples.write_gradients(i);
    }
  }
}

// Samples of an image add up in the same pixels, so that threads take whole images, and where these are fewer than
// threads, some of the groups. No value is a sum over threads: any number of them gives the same bits.
inline void backward(const Aggregation& a) {
  const int64_t threads = threads_for(a, 4), image_parts = at_most(a.batch, threads);
  const int64_t group_parts = at_most(a.offset_groups, threads / image_parts);
  in_parts(a, image_parts * group_parts, [&](int64_t part) {
    backward_of_images(a, share_of(a.batch, image_parts, part / group_parts),
                       share_of(a.offset_groups, group_parts, part % group_parts));
  });
}

}  // namespace aggregate
