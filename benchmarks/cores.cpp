// Prints how many nanoseconds a cache line takes from the first core to the second: about 30 if they share a cache,
// and several times that if not.

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

alignas(64) static std::atomic<int> turn{0};
constexpr int ROUNDS = 100000;

static void play(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
  for (int i = 0; i < ROUNDS; i++) {
    while (turn.load(std::memory_order_acquire) != 2 * i + core) {
    }
    turn.store(2 * i + core + 1, std::memory_order_release);
  }
}

int main() {
  const auto start = std::chrono::steady_clock::now();
  std::thread other(play, 1);
  play(0);
  other.join();
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  std::printf("%.0f\n", time.count() / ROUNDS / 2);
}
