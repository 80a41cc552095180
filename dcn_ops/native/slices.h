// How the backward is shared among threads. Samples of an image add up in the same pixels, so that threads take whole
// images; where there are fewer images than threads, or filters are large, slices of the channels as well.

#pragma once

#include <vector>

#include "parallel.h"

// Channels of a slice that lie in one offset group.
struct Segment {
  int64_t group;
  Share channels;
};

// What a thread computes.
struct Part {
  int64_t image_part;
  Share images, channels;
  std::vector<Segment> segments;
  float *grad_offset, *grad_mask;  // of these channels alone
};

class Parts {
 public:
  // A slice is a multiple of `grain` channels. `prefer_slices`: the gradients of the filters are so large that
  // threads should not each have their own.
  Parts(const Sampling& problem, Scratch& scratch, int64_t threads, int64_t grain, bool prefer_slices)
      : problem_(problem), grain_(grain) {
    const int64_t grains = divide_up(problem.channels, grain);
    if (prefer_slices) {
      slices_ = at_most(threads, at_least(1, grains / 4));
      image_parts_ = at_most(problem.batch, threads / slices_);
    } else {
      image_parts_ = at_most(problem.batch, threads);
      slices_ = at_most(threads / image_parts_, grains);
    }
    const int64_t maps = (slices_ - 1) * map_size();
    if (maps == 0) return;
    if (problem.grad_offset != nullptr) more_offset_ = scratch.array<float>(2 * maps);
    if (problem.grad_mask != nullptr) more_mask_ = scratch.array<float>(maps);
  }

  int64_t count() const { return image_parts_ * slices_; }
  int64_t image_parts() const { return image_parts_; }

  Part part(int64_t i) const {
    const int64_t slice = i % slices_, size = problem_.offset_group_channels();
    Part part;
    part.image_part = i / slices_;
    part.images = share_of(problem_.batch, image_parts_, part.image_part);
    const Share grains = share_of(divide_up(problem_.channels, grain_), slices_, slice);
    part.channels = {grains.begin * grain_, at_most(grains.end * grain_, problem_.channels)};
    for (int64_t c = part.channels.begin; c < part.channels.end;) {
      const int64_t group = c / size, end = at_most((group + 1) * size, part.channels.end);
      part.segments.push_back({group, {c, end}});
      c = end;
    }
    part.grad_offset = slice == 0 ? problem_.grad_offset : at(more_offset_, 2 * (slice - 1));
    part.grad_mask = slice == 0 ? problem_.grad_mask : at(more_mask_, slice - 1);
    return part;
  }

  // The gradients of offset and mask are sums over the slices, in their order.
  void add_up_maps() const {
    for (int64_t slice = 1; slice < slices_; slice++) {
      add(problem_.grad_offset, at(more_offset_, 2 * (slice - 1)), 2 * map_size());
      add(problem_.grad_mask, at(more_mask_, slice - 1), map_size());
    }
  }

 private:
  int64_t map_size() const {
    return problem_.batch * problem_.out_pixels() * problem_.offset_groups * problem_.taps();
  }
  float* at(float* maps, int64_t index) const { return maps == nullptr ? nullptr : maps + index * map_size(); }

  static void add(float* to, const float* from, int64_t size) {
    if (to == nullptr) return;
    for (int64_t i = 0; i < size; i++) to[i] += from[i];
  }

  const Sampling& problem_;
  const int64_t grain_;
  int64_t image_parts_, slices_;
  float *more_offset_ = nullptr, *more_mask_ = nullptr;
};

// Set channels of an image, [H, W, C], to 0.
inline void clear_channels(const Sampling& a, const Share& channels, float* image) {
  const int64_t pixels = a.height * a.width;
  if (channels.end - channels.begin == a.channels) {
    std::memset(image, 0, pixels * a.channels * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < pixels; i++)
    std::memset(image + i * a.channels + channels.begin, 0, (channels.end - channels.begin) * sizeof(float));
}
