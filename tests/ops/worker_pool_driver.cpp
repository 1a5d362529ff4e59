// Hammers csrc/cpu/threads/worker_pool.cpp without torch, for the sanitizers; returns 0 if all went well.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "threads/worker_pool.h"

namespace {

using paged_stream::share_items;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::_Exit(1);
}

std::atomic<int64_t> num_helped{0};  // items that another thread than the caller has run

// Plain numbers: a race on them is one that the thread sanitizer sees.
void share_once(std::mt19937& random, void (*within)(int64_t)) {
  const auto here = std::this_thread::get_id();
  const int64_t size = 1 + random() % 60, threads = 1 + random() % 6;
  std::vector<int> counts(size);
  share_items(size, threads, [&](int64_t i) {
    ++counts[i];
    if (std::this_thread::get_id() != here) ++num_helped;
    within(i);
  });
  for (const int count : counts) check(count == 1, "every item runs once");
}

void do_nothing(int64_t) {}

// Longer than a thread spins: workers find nothing to do and callers wait for items, asleep.
void take_long(int64_t i) {
  if (i < 3) std::this_thread::sleep_for(std::chrono::microseconds(300));
}

void share_within(int64_t i) {
  if (i > 5) return;
  std::mt19937 random(i);
  share_once(random, do_nothing);
}

void share_and_throw(std::mt19937& random) {
  const int64_t size = 1 + random() % 60, bad = random() % size;
  std::vector<int> counts(size);
  std::string message;
  try {
    share_items(size, 4, [&](int64_t i) {
      ++counts[i];
      if (i == bad) throw std::runtime_error("item " + std::to_string(bad));
    });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  check(message == "item " + std::to_string(bad), "what an item throws reaches the caller");
  for (const int count : counts) check(count <= 1, "no item runs twice");
}

// Shares sections of all kinds until helpers have run `helped` items in all, of any caller's.
void call(unsigned seed, int64_t helped) {
  std::mt19937 random(seed);
  for (int i = 0; i < 50 || num_helped < helped; ++i) {
    const unsigned kind = random() % 16;
    if (kind == 0) share_and_throw(random);
    if (kind == 1) take_long(0);
    if (kind > 1) share_once(random, kind == 2 ? take_long : kind == 3 ? share_within : do_nothing);
  }
}

// More callers than the pool has sections for, and then so few that each has one.
void hammer() {
  for (const int callers : {40, 3}) {
    const int64_t helped = num_helped + 3000;
    std::vector<std::thread> threads;
    for (int i = 0; i < callers; ++i) threads.emplace_back(call, i, helped);
    for (std::thread& thread : threads) thread.join();
  }
}

void compute_in_child() {
  call(1, 100);
  const pid_t child = fork();
  if (child == 0) {
    call(2, num_helped + 100);
    std::exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(status == 0, "a forked child computes, with helpers, and ends");
}

// Ends while another thread shares work.
void leave_at_work() {
  std::thread(call, 1, std::numeric_limits<int64_t>::max()).detach();
  call(2, 100);
}

}  // namespace

int main(int argc, char** argv) {
  alarm(300);  // so long if it hangs, in a child as well
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "hammer") hammer();
  if (mode == "fork") compute_in_child();
  if (mode == "exit") leave_at_work();
}
