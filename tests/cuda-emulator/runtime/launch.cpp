// The distribution of a grid's blocks over workers, and the message for a kernel that faults.
#include "launch.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <tuple>

#include "memory.h"
#include "modules.h"
#include "report.h"

namespace emu {
namespace {
// A second OS thread is worth waking for this much work.
constexpr double WORTH_SHARING_SECONDS = 100e-6;
constexpr unsigned MAX_COOPERATIVE_BLOCKS = 64;

thread_local Worker* active = nullptr;
std::mutex baton;

// The order of blocks: i-th to run -> block number.
struct BlockOrder {
    unsigned blocks, step, start;
    explicit BlockOrder(unsigned n, uint64_t seed) : blocks(n), step(1), start(0) {
        if (settings.order == Order::REVERSE) {
            step = n - 1 ? n - 1 : 1;
            start = n - 1;
        } else if (settings.order == Order::RANDOM) {
            start = (unsigned)(seed % n);
            for (step = (unsigned)(seed / 7 % n) | 1; std::gcd(step, n) != 1; ++step) {}
        }
    }
    unsigned operator[](uint64_t i) const { return (unsigned)((start + i * step) % blocks); }
};

struct Job {
    const Launch* launch;
    BlockOrder order;
    std::atomic<unsigned> next{0};
};

void enter(Worker& w, const Launch& launch, unsigned index) {
    w.static_shared = static_shared_of(*launch.kernel);
    w.random = (settings.seed * 0x9e3779b97f4a7c15ull + launch.number * 7919ull + index) | 1;
    for (int i = 0; i < 4; ++i) w.draw();
    active = &w;
}

void work(Worker& w, Job& job, unsigned index) {
    enter(w, *job.launch, index);
    for (unsigned i; (i = job.next++) < job.order.blocks && !failed();) run_block(w, *job.launch, job.order[i]);
    active = nullptr;
}

// The second OS thread, made when it is first wanted.
class Helper {
  public:
    void start(Job& job) {
        std::lock_guard lock(mutex_);
        if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
        job_ = &job;
        changed_.notify_all();
    }
    void finish() {
        std::unique_lock lock(mutex_);
        if (!taken_) {
            job_ = nullptr;  // it did not wake in time
            return;
        }
        changed_.wait(lock, [this] { return !taken_; });
    }

  private:
    void loop() {
        auto worker = std::make_unique<Worker>();
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return job_ != nullptr; });
            Job* job = job_;
            job_ = nullptr;
            taken_ = true;
            lock.unlock();
            work(*worker, *job, 1);
            lock.lock();
            taken_ = false;
            changed_.notify_all();
        }
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    std::thread thread_;
    Job* job_ = nullptr;
    bool taken_ = false;
};

void run_cooperative(const Launch& launch, unsigned blocks) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < blocks; ++i)
        threads.emplace_back([&, i] {
            auto w = std::make_unique<Worker>();
            std::unique_lock lock(baton, std::defer_lock);
            if (CHECKING) lock.lock();
            enter(*w, launch, i);
            run_block(*w, launch, i);
            active = nullptr;
        });
    for (auto& t : threads) t.join();
}

struct sigaction previous_action;

// A fast-flavour kernel that dereferences a wild pointer: say which, then let the process end as it would have.
void on_fault(int signal, siginfo_t* info, void*) {
    if (const Worker* w = active) {
        char text[256];
        const int n = snprintf(text, sizeof text, "CUDA emulator: kernel %s block (%u,%u,%u) faults at address %p\n",
                               w->launch->kernel->name, w->block_index.x, w->block_index.y, w->block_index.z, info->si_addr);
        if (write(2, text, (size_t)n) < 0) {}
    }
    sigaction(signal, &previous_action, nullptr);
}

void watch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_action);
    });
}
}  // namespace

void pass_baton() {
    if (!CHECKING) return;
    baton.unlock();
    std::this_thread::yield();
    baton.lock();
}

// With CUDA_EMULATOR_LAUNCHES no kernel runs: its name, threads and dynamic shared memory go to that file, every combination once. So the launches of
// models that are far too large to be emulated can be known, and what the host needs beside a device that takes no time.
bool only_listed(const Launch& launch) {
    if (!only_listing()) return false;
    static const char* const path = getenv("CUDA_EMULATOR_LAUNCHES");
    static auto& seen = *new std::set<std::tuple<std::string, unsigned, unsigned>>;
    const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    if (seen.emplace(launch.kernel->name, threads, launch.shared_bytes).second) {
        if (FILE* file = fopen(path, "a")) {
            fprintf(file, "%s %u %u\n", launch.kernel->name, threads, (unsigned)launch.shared_bytes);
            fclose(file);
        }
    }
    return true;
}

bool run_grid(Launch& launch) {
    if (only_listed(launch)) return true;
    watch_faults();
    static uint32_t launches = 1;  // 0 is "never", also to the launch after it
    launch.number = ++launches;
    const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
    if (CHECKING) forget_atomic_order();
    if (launch.cooperative && blocks > 1) {
        if (blocks > MAX_COOPERATIVE_BLOCKS) {
            host_finding("cooperative launch of %u blocks: the emulated device holds %u", blocks, MAX_COOPERATIVE_BLOCKS);
            return false;
        }
        run_cooperative(launch, blocks);
        return !failed();
    }
    // The checks keep one history of memory, so they see one block at a time.
    static const bool two_cores = std::thread::hardware_concurrency() > 1 && !CHECKING;
    static auto& mine = *new Worker;
    static auto& helper = *new Helper;
    Job job{&launch, BlockOrder(blocks, settings.seed + launch.number), {}};
    double& average = launch.kernel->block_seconds;
    const bool share = two_cores && blocks > 1 && average * blocks > WORTH_SHARING_SECONDS;
    const auto begin = std::chrono::steady_clock::now();
    if (share) helper.start(job);
    work(mine, job, 0);
    if (share) helper.finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const double each = seconds * (share ? 2 : 1) / blocks;
    average = average == 0 ? each : 0.75 * average + 0.25 * each;
    return !failed();
}
}  // namespace emu
