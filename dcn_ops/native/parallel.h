// Threads of torch's own pool, and memory for each.

#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "problem.h"

// Memory that is given back as a whole when the object goes. A thread keeps some of it for its next call, since
// fresh pages cost more than what small calls compute.
class Scratch {
 public:
  Scratch() : kept_(Kept::of_thread()), start_(kept_.used) {}
  Scratch(const Scratch&) = delete;

  ~Scratch() {
    for (void* block : blocks_) std::free(block);
    kept_.used = start_;
    if (start_ == 0) kept_.grow();
  }

  template <class T>
  T* array(int64_t count) {
    const int64_t size = divide_up(count * (int64_t)sizeof(T) + PAD, ALIGNMENT) * ALIGNMENT;
    const int64_t at = kept_.used;
    kept_.used += size;
    kept_.peak = at_least(kept_.peak, kept_.used);
    if (kept_.used <= kept_.size) return reinterpret_cast<T*>(kept_.memory + at);
    void* block = std::aligned_alloc(ALIGNMENT, size);
    if (block == nullptr) throw std::bad_alloc();
    blocks_.push_back(block);
    return static_cast<T*>(block);
  }

  template <class T>
  T* zeros(int64_t count) {
    T* result = array<T>(count);
    std::memset(result, 0, count * sizeof(T));
    return result;
  }

 private:
  static constexpr int64_t ALIGNMENT = 64;
  static constexpr int64_t PAD = 128;  // a vector may be read that starts in the array and ends behind it
  static constexpr int64_t KEEP = 2 << 20;

  struct Kept {
    char* memory = nullptr;
    int64_t size = 0, used = 0, peak = 0;

    static Kept& of_thread() {
      static thread_local Kept kept;
      return kept;
    }

    // Make room for what the calls so far took at their peak, within the limit.
    void grow() {
      const int64_t wanted = at_most(peak, KEEP);
      if (wanted <= size) return;
      std::free(memory);
      memory = static_cast<char*>(std::aligned_alloc(ALIGNMENT, wanted));
      size = memory == nullptr ? 0 : wanted;
    }

    ~Kept() { std::free(memory); }
  };

  Kept& kept_;
  const int64_t start_;
  std::vector<void*> blocks_;
};

struct Share {
  int64_t begin, end;
};

// Of `count` items, those of one of the parts.
inline Share share_of(int64_t count, int64_t parts, int64_t part) {
  return {count * part / parts, count * (part + 1) / parts};
}

// Call `work(part)` for each part, in threads. What a part computes depends on the number of parts alone, so that a
// number of threads always gives the same bits, whoever runs them.
template <class Work>
void in_parts(const Sampling& problem, int64_t parts, const Work& work) {
  if (parts == 1 || problem.parallel_for == nullptr) {
    for (int64_t part = 0; part < parts; part++) work(part);
    return;
  }
  struct Context {
    const Work& work;
    std::atomic<bool> failed;
  } context{work, {false}};
  const Range range = [](int64_t begin, int64_t end, void* pointer) {
    Context& context = *static_cast<Context*>(pointer);
    try {
      for (int64_t part = begin; part < end; part++) context.work(part);
    } catch (const std::bad_alloc&) {  // no exception may leave through C
      context.failed = true;
    }
  };
  if (problem.parallel_for(0, parts, 1, range, &context) != 0 || context.failed) throw std::bad_alloc();
}

// How many threads the work of a call is worth: starting one costs some ten microseconds. `each`: the multiplications
// that a channel of a sample needs.
inline int64_t threads_for(const Sampling& a, int64_t each) {
  const int64_t samples = a.batch * a.out_pixels() * a.taps();
  return at_least(1, at_most(a.threads, (samples * a.channels * each) >> 18));
}
